"""Object storage: one interface with two adapters, the layout of keys, and the formats of files. No torch."""
