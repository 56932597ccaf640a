"""Host: what starts a supervisor: this process, a program that embeds one, or a fresh interpreter."""
