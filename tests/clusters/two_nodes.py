"""Two Ray nodes for two replicas, the second of which comes late: where each replica goes, as JSON.

In a separate process, because the test's process may belong to another Ray cluster.
"""

import json
from typing import Any

import ray
from ray.cluster_utils import Cluster

from workers.serve.ray_adapters import REPLICA, at_most_per_node

_SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False}
_SECONDS = 300.0
# Wait for an event that must not occur; a longer wait would show the same.
_A_MOMENT = 1.0


@ray.remote
class Replica:
    """Returns its node."""

    def node(self) -> str:
        """Its id."""
        return str(ray.get_runtime_context().get_node_id())


def main() -> None:
    """Print the nodes of the first generation with one node, with two, and of the next one; and all CPUs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_SMALL})
    _add_node(cluster)
    ray.init(address=cluster.address, log_to_driver=False)
    old = _generation("old")
    answers = _asked(old)
    _nodes(answers, _SECONDS, count=1)
    early = _nodes(answers, _A_MOMENT)
    _add_node(cluster)
    late = _nodes(answers, _SECONDS)
    new = _nodes(_asked(_generation("new")), _SECONDS)
    cpus = ray.cluster_resources().get("CPU", 0.0)
    print(json.dumps({"early": early, "late": late, "new": new, "cpus": cpus}))


def _add_node(cluster: Cluster) -> None:
    # As the chart starts a pod for one replica.
    cluster.add_node(num_cpus=0, resources={REPLICA: 2}, object_store_memory=80 << 20)


def _generation(name: str) -> list[Any]:
    replica: Any = Replica
    return [replica.options(**at_most_per_node(REPLICA, 1, name)).remote() for _ in range(2)]


def _asked(replicas: list[Any]) -> list[Any]:
    """Their pending responses."""
    return [replica.node.remote() for replica in replicas]


def _nodes(answers: list[Any], seconds: float, count: int = 2) -> list[str]:
    """Nodes of the replicas, once there are that many, or after a timeout."""
    there, _ = ray.wait(answers, num_returns=count, timeout=seconds)
    nodes: list[str] = ray.get(there)
    return nodes


if __name__ == "__main__":
    main()
