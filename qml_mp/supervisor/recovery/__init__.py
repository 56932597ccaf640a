"""Supervisor: what dead workers and dead servers have left: who judges them, and what their jobs become."""
