"""Model registry: models, versions, promotion, and the live pointer."""
