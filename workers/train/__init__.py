"""Training jobs.

job.py          the main path: one attempt, from the store to a candidate version
learn.py        one dataset on a model's state, without storage; loop.py: its updates on rows
dataset.py      rows of a dataset, from shards to memory or a local disk; rows.py: to global batches
certify.py      drift and quality of past datasets; evaluation.py: recall on held-out rows
versions.py     what a job reads, parent version and past datasets, and writes: the candidate
distributed.py  all collectives

How an attempt comes to its ranks:

server.py       the driver's part: requests in the store, which pool trains each, and how each has ended
pool.py         ranks that outlive single attempts: an actor on Ray; queue.py: which attempt is next
ranks.py        a Ray Train run, of one attempt or of a pool
settings.py     environment variables, command line options, and what a group of ranks consists of
"""
