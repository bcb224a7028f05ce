"""Parts of `benchmarks.large_dataset`.

data.py     writes the dataset
rank.py     one rank in a separate process
limit.py    the memory limit of a rank, and its memory use
page.py     page and plot
"""
