"""The model: heads, loss, moments of earlier datasets, files, evaluation. No Ray, HTTP, buckets or ranks."""
