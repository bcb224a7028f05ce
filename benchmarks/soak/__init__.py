"""Memory of a whole local system over many jobs; see benchmarks/training_soak.py."""
