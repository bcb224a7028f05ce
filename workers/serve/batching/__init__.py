"""The one thread and the one place where heads are applied."""
