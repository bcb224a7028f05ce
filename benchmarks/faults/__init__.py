"""Parts of `benchmarks.training_faults`.

nodes.py      several Ray nodes on this machine
attempts.py   a dataset, and attempts of one job that learns it
bucket.py     an object store that can become unavailable
cases.py      the faults
trial.py      one job on a small cluster, and its progress over time
"""
