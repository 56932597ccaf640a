"""Client: one module per group of commands."""
