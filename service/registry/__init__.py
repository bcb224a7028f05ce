"""Model registry: models, versions, promotion, canaries, and the live pointer."""
