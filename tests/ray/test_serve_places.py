"""Nodes for replicas alone: each gets its share, also the one that comes late, and also in an update."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from workers.serve.app import build
from workers.serve.placement import ENCODER, REPLICA, at_most_per_node

TEXT = {"modality": "text", "kind": "synthetic", "width": 8, "num_cpus": 2.5}
STORE = {"store": "s3://bucket/cmcl", "encoders": [TEXT]}


@pytest.mark.ray
def test_a_node_that_comes_late_gets_its_replica_and_an_update_finds_room() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.ray.two_nodes"],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=840,
    )
    assert ran.returncode == 0, ran.stderr
    nodes = json.loads(ran.stdout.splitlines()[-1])
    assert len(nodes["early"]) == 1, "the other one waits for a node of its own"
    assert len(set(nodes["late"])) == 2
    assert set(nodes["early"]) < set(nodes["late"])
    # The old ones are still there.
    assert set(nodes["new"]) == set(nodes["late"])
    assert nodes["cpus"] == 0, "what a rank books, it finds nowhere here"


def test_a_node_has_exactly_room_for_its_share() -> None:
    for per_node in range(1, 101):
        booked = at_most_per_node(REPLICA, per_node, "x")["resources"]
        assert booked.pop(REPLICA) == 1
        (share,) = booked.values()
        in_grains = round(share * 10_000)
        assert in_grains == pytest.approx(share * 10_000), f"Ray would round it: {per_node}"
        assert per_node * in_grains <= 10_000 < (per_node + 1) * in_grains, per_node


def _options(**arguments: object) -> tuple[Any, Any]:
    """What replica and encoder book."""
    replica: Any = build({**STORE, **arguments})._bound_deployment
    _, encoders = replica.init_args
    return replica.ray_actor_options, encoders["text"]._bound_deployment.ray_actor_options


def test_cpus_are_booked_on_shared_nodes() -> None:
    replica, encoder = _options(num_cpus=0.5)
    assert (replica["num_cpus"], encoder["num_cpus"]) == (0.5, 2.5)
    assert "resources" not in replica
    assert "resources" not in encoder


def test_where_nodes_are_their_own_places_are_booked_and_no_cpus() -> None:
    for options, resource in zip(_options(replicas_per_node=2), (REPLICA, ENCODER), strict=True):
        assert options["num_cpus"] == 0
        assert options["resources"][resource] == 1


def test_other_arguments_are_counted_by_themselves() -> None:
    one, other = (_options(replicas_per_node=1, max_rows=rows)[0]["resources"] for rows in (1, 2))
    assert one != other
    # An encoder stays as it is when something else changes.
    one, other = (_options(replicas_per_node=1, max_rows=rows)[1]["resources"] for rows in (1, 2))
    assert one == other
