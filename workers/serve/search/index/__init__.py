"""Collections in memory: vectors of one version, searched exactly or by a graph, filtered by payload."""
