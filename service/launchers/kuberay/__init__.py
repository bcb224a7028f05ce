"""Attempts as RayJobs: each has a Ray cluster of its own, which Kueue may let wait for room."""
