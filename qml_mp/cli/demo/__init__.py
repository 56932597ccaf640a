"""Client: `qml-mp demo` and what only it needs."""
