"""Collections that follow the model: features are stored, vectors are computed again for each version.

In the store there are immutable segments, and revisions that name the segments that count. In memory there are
vectors of one version, searched exactly or by a graph, filtered by payload.
"""
