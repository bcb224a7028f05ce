"""The database: tables, migrations, and every query as one function."""
