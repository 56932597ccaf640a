"""Worker: the code that runs in a forked child of the supervisor."""
