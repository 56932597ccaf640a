"""Supervisor: what its loop looks after beside the workers and the loops that need storage."""
