"""Who sends a request: keys, tokens of an issuer, and how many requests each may send."""
