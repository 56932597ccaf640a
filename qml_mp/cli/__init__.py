"""Client: the command line `qml-mp`, one module per group of commands."""
