"""The control plane: HTTP in, rows in a database, jobs out. It never imports torch."""
