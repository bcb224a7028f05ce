"""Parts of `benchmarks.training_soak`."""
