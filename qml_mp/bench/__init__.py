"""Client: what `qml-mp bench` measures, and how."""
