"""Authentication: API keys, OpenID tokens, rate limits, and the signed key list for replicas of the endpoint."""
