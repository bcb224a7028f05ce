"""The control plane: an HTTP API, a database, and the reconciler that submits training jobs."""
