"""Benchmarks. Each module states its question and ends with one line of JSON."""
