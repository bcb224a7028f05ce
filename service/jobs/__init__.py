"""Jobs: the reconciler and its steps, from a queued dataset to a stored version; the driver on the cluster."""
