"""Attempts as RayJobs, each with its own Ray cluster, optionally queued by Kueue."""
