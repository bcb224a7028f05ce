"""Background maintenance: garbage collection, backup to object storage, rebuild."""
