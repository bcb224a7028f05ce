"""Resources that replicas and encoders reserve on a node."""

from typing import Any

import pytest

from workers.serve.app import build
from workers.serve.encoders.deployment import ENCODER, REPLICA, at_most_per_node

TEXT = {"name": "words", "kind": "synthetic", "takes": "text", "width": 8, "num_cpus": 2.5}
STORE = {"store": "s3://bucket/cmcl", "encoders": [TEXT]}


def test_a_node_has_exactly_room_for_its_share() -> None:
    for per_node in range(1, 101):
        booked = at_most_per_node(REPLICA, per_node, "x")["resources"]
        assert booked.pop(REPLICA) == 1
        (share,) = booked.values()
        in_grains = round(share * 10_000)
        assert in_grains == pytest.approx(share * 10_000), f"Ray would round it: {per_node}"
        assert per_node * in_grains <= 10_000 < (per_node + 1) * in_grains, per_node


def _options(**arguments: object) -> tuple[Any, Any]:
    """Resources that a replica and an encoder reserve."""
    replica: Any = build({**STORE, **arguments})._bound_deployment
    _, encoders = replica.init_args
    return replica.ray_actor_options, encoders["words"]._bound_deployment.ray_actor_options


def test_cpus_are_booked_on_shared_nodes() -> None:
    replica, encoder = _options(num_cpus=0.5)
    assert (replica["num_cpus"], encoder["num_cpus"]) == (0.5, 2.5)
    assert "resources" not in replica
    assert encoder["resources"] == {}


def test_where_nodes_are_their_own_places_are_booked_and_no_cpus() -> None:
    for options, resource in zip(_options(replicas_per_node=2), (REPLICA, ENCODER), strict=True):
        assert options["num_cpus"] == 0
        assert options["resources"][resource] == 1


@pytest.mark.parametrize("places", [{}, {"replicas_per_node": 1}])
def test_an_encoder_books_the_resources_of_its_image(places: dict[str, object]) -> None:
    encoders = [{**TEXT, "resources": {"imagebind": 0.5}}]
    _, encoder = _options(encoders=encoders, **places)
    assert encoder["resources"]["imagebind"] == 0.5
    assert (ENCODER in encoder["resources"]) == bool(places)


def test_other_arguments_are_counted_by_themselves() -> None:
    one, other = (_options(replicas_per_node=1, num_cpus=cpus)[0]["resources"] for cpus in (1, 2))
    assert one != other
    # An encoder stays as it is when something else changes.
    one, other = (_options(replicas_per_node=1, num_cpus=cpus)[1]["resources"] for cpus in (1, 2))
    assert one == other
