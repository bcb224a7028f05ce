"""`cmcl demo`: train a small real stream with and without protection, under queries."""
