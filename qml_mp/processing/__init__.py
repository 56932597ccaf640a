"""Worker: from a claim to one outcome. Knows no pipe, pid, signal or SQL."""
