"""Placement of replicas and encoders in a cluster that has nodes for each of them.

By default they are placed where CPUs are free. With a number of replicas per node, a replica reserves one
`cmcl_replica` and an encoder one `cmcl_encoder` instead of CPUs: resources that only their own nodes have. Ranks
reserve CPUs, which those nodes do not have, so that they do not displace each other.

No node takes more than its share, which would leave nothing for a node that joins a moment later. Each generation
is counted separately, so that new ones start beside old ones. `max_replicas_per_node` of Serve counts all
together: an update found no space on full nodes, and never ended.
"""

import math
from typing import Any

from ray._raylet import IMPLICIT_RESOURCE_PREFIX  # type: ignore[attr-defined]  # compiled

REPLICA, ENCODER = "cmcl_replica", "cmcl_encoder"
# Ray counts in ten-thousandths, and rounds: exact for up to a hundred on a node.
_GRAIN = 10_000


def at_most_per_node(resource: str, per_node: int, generation: str) -> dict[str, Any]:
    """Return the actor options of one of at most `per_node` of its generation on a node."""
    # Every node has one of each resource whose name begins with this prefix.
    counted = f"{IMPLICIT_RESOURCE_PREFIX}{resource}:{generation}"
    share = math.floor(_GRAIN / per_node) / _GRAIN
    return {"num_cpus": 0, "resources": {resource: 1, counted: share}}
