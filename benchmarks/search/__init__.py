"""Parts of `benchmarks.search_follows`."""
