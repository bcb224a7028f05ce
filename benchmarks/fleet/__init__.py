"""Benchmark of the control plane with many running jobs."""
