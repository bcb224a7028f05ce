"""Where things lie: one port for object storage, two adapters, and the names of all keys. No torch."""
