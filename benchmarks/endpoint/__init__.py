"""Parts of the serving benchmarks: versions in a store, replicas behind HAProxy, and clients."""
