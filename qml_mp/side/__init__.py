"""Beside a server: the processes in which its page and its metrics are served."""
