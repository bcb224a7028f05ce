"""Collections that follow the model: features are stored, vectors are computed again for each version.

A collection is a table of Lance in the store. One replica computes the vectors of a new version beside those that are
searched, and indexes them; every replica searches what is in the store.
"""

import os

# Read when Lance is imported. With one thread it can wait for itself; its warnings are about its own work.
os.environ.setdefault("LANCE_CPU_THREADS", "2")
os.environ.setdefault("LANCE_LOG", "error")
