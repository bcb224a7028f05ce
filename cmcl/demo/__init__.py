"""`cmcl demo`: the whole system on a small real stream, with and without protection."""
