"""Object storage: one interface with two adapters, the layout of keys, and what both planes read and write there."""
