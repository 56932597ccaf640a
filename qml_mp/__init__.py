"""qml-mp: CPU-bound background jobs, one supervisor, N worker processes, no job lost."""

__version__ = "0.1.0"
