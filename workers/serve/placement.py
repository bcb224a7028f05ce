"""Where replicas and encoders run in a cluster that has nodes for each of them.

By default they go wherever CPUs are free. Told how many replicas a node is for, a replica books one
`cmcl_replica` and an encoder one `cmcl_encoder` in place of CPUs: resources that only their own nodes
have. Ranks book CPUs, which those nodes do not have, so neither takes the other's place.

No node takes more than its share, which would leave nothing to the node that comes a moment later. Each
generation is counted by itself, so that new ones start beside old ones. `max_replicas_per_node` of Serve
counts all together: an update found no room on nodes that were full, and never ended.
"""

import math
from typing import Any

from ray._raylet import IMPLICIT_RESOURCE_PREFIX  # type: ignore[attr-defined]  # compiled

REPLICA, ENCODER = "cmcl_replica", "cmcl_encoder"
# Ray counts in ten-thousandths, and rounds: exact for up to a hundred on a node.
_GRAIN = 10_000


def at_most_per_node(resource: str, per_node: int, generation: str) -> dict[str, Any]:
    """What an actor books that is one of at most `per_node` of its generation on a node."""
    # Every node has one of each resource with this prefix, whatever comes behind it.
    counted = f"{IMPLICIT_RESOURCE_PREFIX}{resource}:{generation}"
    share = math.floor(_GRAIN / per_node) / _GRAIN
    return {"num_cpus": 0, "resources": {resource: 1, counted: share}}
