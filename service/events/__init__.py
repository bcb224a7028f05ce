"""Events: their kinds, the live feed, and webhooks."""
