"""Nodes for replicas: each gets its number of replicas, also a late node, and during an update."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.ray
def test_a_node_that_comes_late_gets_its_replica_and_an_update_finds_room() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.clusters.two_nodes"],
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
