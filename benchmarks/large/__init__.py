"""Parts of `benchmarks.large_dataset`.

data.py     writes the dataset
rank.py     one rank in a separate process
"""
