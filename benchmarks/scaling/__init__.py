"""Parts of `benchmarks.scale`: a time model of an update, its constants, its test, and its
forecast."""
