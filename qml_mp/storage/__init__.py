"""Every process: jobs as rows, in SQLite or PostgreSQL behind one port (`database.Database`).

`open.open_storage(url)` is the way in. Importing this package imports no backend.
"""
