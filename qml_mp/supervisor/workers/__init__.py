"""Supervisor: the worker processes: forked, watched, replaced, killed, reaped."""
