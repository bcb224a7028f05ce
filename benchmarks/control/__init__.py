"""Parts of `benchmarks.control_plane` and `benchmarks.chaos`."""
