"""Collections in object storage: immutable segments, and revisions that say which of them count."""
