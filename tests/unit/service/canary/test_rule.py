"""Observations decide: the rule alone, then in the reconciler."""

from datetime import UTC, datetime, timedelta

import pytest

from cmcl.contract.policy import Observed, PairAgreement, RolloutRule
from service.database.queries import canaries as rows
from service.registry.canary import judge, judge_canary
from tests.fakes.control_plane import ControlPlane
from tests.fakes.observations import PAIR, agreement, observe
from tests.unit.service.canary.conftest import CanaryApi
from tests.unit.service.telemetry.samples import shown
from workers.storage import layout

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
RULE = RolloutRule(min_requests=100, max_error_share=0.01)
STRICT = RolloutRule(min_requests=100, min_cosine=0.9, min_overlap=0.8, promote_after=200)


def pairs(queries: int, cosine: float, overlap: float) -> dict[str, PairAgreement]:
    return agreement(queries, cosine, overlap)


@pytest.mark.parametrize(
    ("rule", "observed", "outcome", "words"),
    [
        (RULE, Observed(answered=50, failed=49), None, ""),
        (RULE, Observed(answered=50, failed=50), "aborted", "50 of 100 requests failed"),
        (RULE, Observed(answered=99, failed=1), None, ""),
        (RULE, Observed(answered=10**6), None, ""),
        (RULE, Observed(refused={"r1": "no file"}), "aborted", "could not load it: no file"),
        (STRICT, Observed(shadowed=150, pairs=pairs(150, 0.95, 0.9)), None, ""),
        (
            STRICT,
            Observed(shadowed=150, pairs=pairs(150, 0.85, 0.9)),
            "aborted",
            "mean cosine with the live version is 0.8500 in 150 queries; permitted (min_cosine): 0.9",
        ),
        (STRICT, Observed(shadowed=150, pairs=pairs(150, 0.95, 0.7)), "aborted", "min_overlap"),
        (STRICT, Observed(shadowed=150, pairs=pairs(99, 0.1, 0.1)), None, ""),
        (STRICT, Observed(answered=200, pairs=pairs(150, 0.95, 0.9)), "promoted", "200 requests"),
        (STRICT, Observed(answered=199, pairs=pairs(150, 0.95, 0.9)), None, ""),
        (STRICT, Observed(answered=200, pairs=pairs(99, 0.95, 0.9)), None, ""),
        (STRICT, Observed(answered=200), None, ""),
    ],
)
def test_the_rule_decides(
    rule: RolloutRule, observed: Observed, outcome: str | None, words: str
) -> None:
    verdict = judge(rule, observed)
    assert (verdict and verdict.outcome) == outcome
    assert words in (verdict.reason if verdict else "")


def test_what_several_replicas_saw_is_added_up(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1, shadow=0.5)
    canary_api.pointer()
    observe(canary_api.plane.store, "r1", answered=3, shadowed=2, pairs=agreement(2, 1.0))
    observe(canary_api.plane.store, "r2", answered=4, shadowed=6, pairs=agreement(6, 0.5))
    seen = (canary_api.judged() or {})["observed"]
    assert (seen["replicas"], seen["answered"], seen["requests"]) == (2, 7, 15)
    assert (seen["pairs"][PAIR]["queries"], seen["pairs"][PAIR]["cosine"]) == (8, 0.625)
    observe(canary_api.plane.store, "r1", answered=5)
    assert (canary_api.judged() or {})["observed"]["answered"] == 9


def test_the_newest_observation_of_a_replica_counts(canary_api: CanaryApi) -> None:
    revision = canary_api.put(2, share=0.1)["revision"]
    canary_api.pointer()
    observe(canary_api.plane.store, "r1", answered=5, at=NOW)
    older = observe(canary_api.plane.store, "r2", answered=3, at=NOW - timedelta(seconds=9))
    renamed = older.model_copy(update={"replica": "r1"}).model_dump_json().encode()
    canary_api.plane.store.put(layout.observation("scenes", revision, "r2"), renamed)
    seen = (canary_api.judged() or {})["observed"]
    assert (seen["replicas"], seen["answered"]) == (1, 5)


@pytest.mark.parametrize("damage", [b"{", b'{"replica": "r9"}', "other version"])
def test_what_cannot_be_read_is_left_out_and_named_once(
    canary_api: CanaryApi, damage: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    revision = canary_api.put(2, share=0.1)["revision"]
    canary_api.pointer()
    observe(canary_api.plane.store, "r1", answered=5)
    key = layout.observation("scenes", revision, "r9")
    if isinstance(damage, bytes):
        canary_api.plane.store.put(key, damage)
    else:
        observe(canary_api.plane.store, "r9", answered=100, version=1)
    for _ in range(3):
        seen = (canary_api.judged() or {})["observed"]
    assert (seen["answered"], list(seen["unreadable"])) == (5, [key])
    assert caplog.text.count("an observation was ignored") == 1


def test_a_canary_that_fails_is_aborted(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1, rule={"min_requests": 10, "max_error_share": 0.1})
    canary_api.pointer()
    observe(canary_api.plane.store, answered=8, failed=2)
    assert canary_api.judged() is None
    pointer = canary_api.pointer()
    assert (pointer.version, pointer.canary) == (3, None)
    kind, version, details = canary_api.events()[-1]
    assert (kind, version, details["actor"]) == ("canary.aborted", 2, "reconciler")
    assert "2 of 10 requests failed because of it (0.2)" in details["reason"]
    assert (details["observed"]["failed"], details["observed"]["requests"]) == (2, 10)
    assert shown(canary_api.plane, "canaries_ended_total", outcome="aborted") == 1


def test_a_canary_that_a_replica_cannot_load_is_aborted_at_once(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1)
    canary_api.pointer()
    observe(canary_api.plane.store, "r7", refused="heads.safetensors has another digest")
    assert canary_api.judged() is None
    assert "replica r7 could not load it: heads" in canary_api.events()[-1][2]["reason"]


def test_one_that_broke_no_bound_is_promoted(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1, rule={"min_requests": 10, "promote_after": 20})
    canary_api.pointer()
    observe(canary_api.plane.store, answered=19)
    assert canary_api.judged() is not None
    observe(canary_api.plane.store, answered=20)
    assert canary_api.judged() is None
    pointer = canary_api.pointer()
    assert (pointer.version, pointer.generation, pointer.canary) == (2, 4, None)
    history = canary_api.plane.client.get("/v1/models/scenes/promotions").json()["items"]
    assert (history[-1]["kind"], history[-1]["actor"]) == ("promoted", "reconciler")
    assert "broke no bound in 20 requests" in history[-1]["reason"]
    assert canary_api.events()[-1][0] == "canary.promoted"


def test_jobs_continue_during_a_canary(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1)
    job = canary_api.plane.post_dataset("four")
    assert canary_api.plane.run_to_end(job).version == 4


def test_an_unavailable_store_ends_no_canary(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1, rule={"min_requests": 1})
    canary_api.pointer()
    observe(canary_api.plane.store, failed=10)
    canary_api.plane.store.broken = "observations/"
    canary_api.plane.tick(5)
    assert canary_api.get() is not None
    canary_api.plane.store.broken = None
    canary_api.plane.clock.advance(30)
    assert canary_api.judged() is None


def test_a_changed_canary_is_not_judged_by_its_old_rule(
    canary_api: CanaryApi, plane: ControlPlane
) -> None:
    canary_api.put(2, share=0.1, rule={"min_requests": 1})
    canary_api.pointer()
    observe(plane.store, failed=10)
    with plane.context.database.read() as connection:
        seen = rows.running(connection, "scenes")
    assert seen is not None
    canary_api.put(2, share=0.1, rule={"min_requests": 1000})
    judge_canary(plane.context, seen)
    assert canary_api.get() is not None
