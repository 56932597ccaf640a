"""Every process: jobs as rows, in SQLite or PostgreSQL behind one protocol (`protocol.Storage`).

`open.open_storage(url)` is the way in. Importing this package imports no backend.
"""
