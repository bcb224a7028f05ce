"""Collections that follow the model: features are stored, vectors are computed again for each version.

A collection is a table of Lance in the store. One replica computes the vectors of a new version beside those that are
searched, and indexes them; every replica searches what is in the store.
"""

import os

# Read when Lance is imported; its warnings are about its own work. With one thread for products it can wait for itself.
# While an index is trained, one of its threads for everything else takes no other work, and a search that was given to
# it waits: seconds, where there are as many threads as cores, and these are two.
os.environ.setdefault("LANCE_CPU_THREADS", "2")
os.environ.setdefault("TOKIO_WORKER_THREADS", str(max(8, os.cpu_count() or 1)))
os.environ.setdefault("LANCE_LOG", "error")
