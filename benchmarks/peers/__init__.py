"""What our endpoint is measured beside: the same product in bare FastAPI, and Infinity."""
