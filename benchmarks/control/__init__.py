"""Parts of `benchmarks.control_plane`, `benchmarks.restart` and `benchmarks.page`."""
