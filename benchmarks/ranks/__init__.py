"""Parts of `benchmarks.rank_invariance`.

job.py      the work of each rank: two datasets of the example stream
wire.py     bytes between ranks, counted by the kernel
page.py     the Markdown page
"""
