"""Everything about rows: tables, migrations, and every query as one function."""
