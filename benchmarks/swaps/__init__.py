"""Parts of `benchmarks.serving_swaps`: swaps, figures, memory, and the page."""
