"""Both ends: the pipe (supervisor to worker) and the slot (worker to supervisor)."""
