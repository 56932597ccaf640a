"""Supervisor: the parent process that keeps the workers alive. It runs no user code."""
