"""Two Ray nodes for two replicas, the second of which comes late: where each replica goes, as JSON.

A process of its own, because a test's own process may belong to another Ray.
"""

import json
from typing import Any

import ray
from ray.cluster_utils import Cluster

from workers.serve.places import REPLICA, one_of

_SMALL = {"object_store_memory": 80 << 20, "include_dashboard": False}
_SECONDS = 60.0
_A_WHILE = 5.0


@ray.remote
class Replica:
    """Tells on which node it is."""

    def node(self) -> str:
        """Its id."""
        return str(ray.get_runtime_context().get_node_id())


@ray.remote(num_cpus=1)
def rank() -> None:
    """What a rank books, it finds nowhere here."""


def main() -> None:
    """Print the nodes of: the first generation with one node; with two; of the next one; ranks that ran."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_SMALL})
    _add_node(cluster)
    ray.init(address=cluster.address, log_to_driver=False)
    old = _generation("old")
    early = _nodes(old, _A_WHILE)
    _add_node(cluster)
    late = _nodes(old, _SECONDS)
    new = _nodes(_generation("new"), _SECONDS)
    ran, _ = ray.wait([rank.remote()], timeout=_A_WHILE)
    print(json.dumps({"early": early, "late": late, "new": new, "ranks": len(ran)}))


def _add_node(cluster: Cluster) -> None:
    # As the chart starts a pod for one replica.
    cluster.add_node(num_cpus=0, resources={REPLICA: 2}, object_store_memory=80 << 20)


def _generation(name: str) -> list[Any]:
    replica: Any = Replica
    return [replica.options(**one_of(REPLICA, 1, name)).remote() for _ in range(2)]


def _nodes(replicas: list[Any], seconds: float) -> list[str]:
    waiting = [replica.node.remote() for replica in replicas]
    there, _ = ray.wait(waiting, num_returns=len(waiting), timeout=seconds)
    nodes: list[str] = ray.get(there)
    return nodes


if __name__ == "__main__":
    main()
