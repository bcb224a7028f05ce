"""Servers to compare the endpoint with: the same products in bare FastAPI, and Infinity."""
