"""Parts of `benchmarks.page`."""
