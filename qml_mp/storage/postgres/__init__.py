"""Every process: the PostgreSQL backend (psycopg 3), for work that several machines share."""
