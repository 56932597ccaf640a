"""Every process: the storage in an SQLite file, on the standard library's `sqlite3`."""
