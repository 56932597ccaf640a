"""Beside a server: its metrics as Prometheus reads them, and its health. Needs the extra `metrics`."""
