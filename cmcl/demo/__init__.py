"""`cmcl demo`: train a small real stream under both policies and without protection, while queries are answered."""
