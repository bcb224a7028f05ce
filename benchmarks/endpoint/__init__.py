"""The endpoint as a benchmark sees it: versions in a store, replicas behind HAProxy, clients that ask."""
