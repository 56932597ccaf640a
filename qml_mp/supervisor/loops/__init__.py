"""Supervisor: the loops: what needs storage, each with its own interval and its own failures."""
