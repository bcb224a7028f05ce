"""Wire formats: bodies of requests and responses."""
