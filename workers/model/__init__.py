"""The model: heads, loss, memory of moments, files, retrieval. No Ray, no HTTP, no buckets, no ranks."""
