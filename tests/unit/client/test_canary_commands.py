"""`cmcl canary` against a real control plane."""

import pytest

from cmcl.cli.errors import Exit
from tests.fakes.control_plane import ControlPlane
from tests.fakes.observations import agreement, observe
from tests.unit.client.command_line import Cmcl


@pytest.fixture
def plane(published_plane: ControlPlane) -> ControlPlane:
    return published_plane


def test_a_canary_is_started_and_aborted(cmcl: Cmcl, plane: ControlPlane) -> None:
    said = cmcl("canary", "start", "scenes", "1", "--share=0.05", "--shadow=0.2", "--min-cosine=0")
    assert "version 1 is a canary (share 0.05, shadow 0.2)" in said
    plane.tick()
    observe(plane.store, answered=2, shadowed=7, failed=1, pairs=agreement(7, 0.5, 0.25))
    plane.tick(4)
    page = cmcl("canary", "show", "scenes")
    assert "10 (2 answered, 7 shadowed, 1 failed) on 1 replicas" in page
    for words in ("image--text", "0.500", "0.250", "min_cosine 0.0"):
        assert words in page
    assert cmcl.one("canary", "show", "scenes")["observed"]["error_share"] == 0.1
    cmcl("canary", "abort", "scenes", "--reason=birds")
    listed = cmcl("canary", "list", "scenes")
    assert "aborted" in listed
    assert "birds" in listed
    assert cmcl.one("canary", "list", "scenes", "--order=desc")["outcome"] == "aborted"
    assert "has no canary" in cmcl("canary", "show", "scenes", code=Exit.FAILED)


def test_new_versions_become_the_canary_if_the_policy_requires_it(cmcl: Cmcl) -> None:
    cmcl("model", "policy", "scenes", "--max-drift=0.3")
    changed = cmcl.one(
        "canary", "policy", "scenes", "--publish-as=canary", "--share=0.1", "--min-requests=9"
    )
    assert changed["rollout"]["publish_as"] == "canary"
    assert (changed["max_drift"], changed["rollout"]["rule"]["min_requests"]) == (0.3, 9)
    cmcl("model", "policy", "scenes", "--max-drift=0.2")
    shown = cmcl("canary", "policy", "scenes")
    assert "publish as  canary" in shown
    assert "min_requests 9" in shown
