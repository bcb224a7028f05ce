"""Metrics, logs and traces. They observe the control plane and decide nothing."""
