"""Training jobs.

job.py          the main path: one attempt, from the store to a candidate version
learn.py        one dataset on a model's state, without storage; loop.py, objective.py: its updates
certify.py      drift and quality of past datasets
versions.py     what a job reads, parent version and past datasets, and writes: the candidate
data/           rows on their way into training
distributed.py  all collectives
ray_run.py      a Ray Train run; pool/: ranks that outlive single attempts
"""
