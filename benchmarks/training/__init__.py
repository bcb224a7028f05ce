"""Parts of `benchmarks.training_rate`: the product's loop, its peers, reading, and the start of a
job."""
