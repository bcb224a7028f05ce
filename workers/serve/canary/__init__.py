"""A version on trial: who gets its answers, and how they compare."""
