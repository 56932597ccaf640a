"""Supervisor: which servers count as dead, and what becomes of the jobs of dead workers and servers."""
