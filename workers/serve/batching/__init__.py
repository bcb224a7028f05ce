"""Where heads are applied to rows, in batches."""
