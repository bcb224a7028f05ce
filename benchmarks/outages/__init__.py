"""Parts of `benchmarks.serving_chaos`: faults, clients, and results."""
