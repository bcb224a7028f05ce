"""A version is put on trial, the trial is changed, and somebody ends it."""

import pytest

from cmcl.contract.rollout import Canary
from service.states import JobState
from tests.fakes.replica_words import observe
from tests.unit.service.canary.conftest import CANDIDATE, Trials
from tests.unit.service.telemetry.samples import shown


def test_live_json_has_the_canary_until_its_end(trials: Trials) -> None:
    before = trials.pointer()
    told = trials.put(2, share=0.1, shadow=0.5)
    during = trials.pointer()
    assert during.candidate == Canary(version=2, revision=told["revision"], share=0.1, shadow=0.5)
    assert (during.generation, during.version) == (before.generation, 3)
    assert told["revision"] == during.revision > before.revision
    assert trials.end("enough") == 204
    after = trials.pointer()
    assert after.candidate is None
    assert after.order > during.order > before.order


def test_events_have_reasons(trials: Trials) -> None:
    trials.put(2, share=0.1, reason="is it better?")
    trials.end("worse on birds")
    began, ended = trials.told()
    assert (began[0], began[1], began[2]["reason"]) == ("candidate.began", 2, "is it better?")
    assert (ended[0], ended[1], ended[2]["reason"]) == ("candidate.aborted", 2, "worse on birds")
    assert ended[2]["actor"] == "local"
    assert trials.end() == 404


def test_only_a_servable_version_becomes_the_canary(trials: Trials) -> None:
    plane = trials.plane
    assert "is live; choose another" in trials.put(3, 409)["detail"]
    assert "permitted: 1 to 3" in trials.put(9, 404)["errors"][0]["message"]
    assert plane.client.request("DELETE", "/v1/models/scenes/versions/1").status_code == 204
    assert "retired" in trials.put(1, 409)["detail"]
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET stored_at = NULL WHERE number = 2")
    assert "being stored" in trials.put(2, 409)["detail"]


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"share": 0}, "share and shadow are both 0"),
        ({"share": 0.1, "rule": {"min_overlap": 0.8}}, "rule.min_overlap is 0.8 and shadow is 0"),
        ({"share": 1.5}, "less than or equal to 1"),
        ({"share": 0.1, "rule": {"min_request": 3}}, "min_request"),
    ],
)
def test_a_canary_that_cannot_be_judged_is_rejected(
    trials: Trials, terms: dict[str, object], words: str
) -> None:
    assert words in str(trials.put(2, 422, **terms)["errors"])
    assert trials.get() is None


def test_a_canary_requires_the_live_version_that_the_caller_saw(trials: Trials) -> None:
    tag = trials.plane.client.get("/v1/models/scenes/live").headers["ETag"]
    body = {"version": 2, "share": 0.1}
    for condition, status in (('"1"', 412), (tag, 200)):
        answer = trials.plane.client.put(CANDIDATE, json=body, headers={"If-Match": condition})
        assert answer.status_code == status
    assert answer.headers["ETag"] == tag


def test_new_shares_restart_the_observations_and_new_bounds_do_not(trials: Trials) -> None:
    first = trials.put(2, share=0.1)
    trials.pointer()
    observe(trials.plane.store, answered=7)
    trials.plane.tick(4)
    bounds = trials.put(2, share=0.1, rule={"max_error_share": 0.5})
    assert (bounds["revision"], bounds["observed"]["answered"]) == (first["revision"], 7)
    shares = trials.put(2, share=0.3, rule={"max_error_share": 0.5})
    assert shares["revision"] > first["revision"]
    assert (shares["observed"]["answered"], shares["began_at"]) == (0, first["began_at"])
    kinds = [kind for kind, _, _ in trials.told()]
    assert kinds == ["candidate.began", "candidate.changed", "candidate.changed"]
    assert trials.told()[-1][2]["observed"]["answered"] == 7


def test_the_same_canary_again_changes_nothing(trials: Trials) -> None:
    assert trials.put(2, share=0.1) == trials.put(2, share=0.1)
    assert len(trials.told()) == 1


def test_another_candidate_takes_the_place_of_the_first(trials: Trials) -> None:
    trials.put(1, share=0.1)
    trials.put(2, share=0.1)
    told = [(kind, version) for kind, version, _ in trials.told()]
    assert told == [("candidate.began", 1), ("candidate.aborted", 1), ("candidate.began", 2)]
    assert trials.told()[1][2]["reason"] == "version 2 is the canary instead"


def test_promoting_the_canary_ends_it(trials: Trials) -> None:
    trials.put(2, share=0.1)
    body = {"version": 2, "reason": "looks good"}
    assert trials.plane.client.put("/v1/models/scenes/live", json=body).status_code == 200
    pointer = trials.pointer()
    assert (pointer.version, pointer.candidate) == (2, None)
    assert trials.told()[-1][0] == "candidate.promoted"
    assert trials.told()[-1][2]["reason"] == "looks good"


def test_a_canary_restarts_beside_another_live_version(trials: Trials) -> None:
    first = trials.put(2, share=0.1)
    trials.plane.client.put("/v1/models/scenes/live", json={"version": 1})
    pointer = trials.pointer()
    assert pointer.candidate is not None
    assert pointer.candidate.version == 2
    assert pointer.candidate.revision == pointer.revision > first["revision"]


def test_a_canary_is_not_retired(trials: Trials) -> None:
    trials.put(2, share=0.1)
    retired = trials.plane.client.request("DELETE", "/v1/models/scenes/versions/2")
    assert (retired.status_code, "abort it first" in retired.text) == (409, True)


def test_deleting_the_model_ends_its_canary_with_event_webhook_and_metric(trials: Trials) -> None:
    plane = trials.plane
    hook = {"url": "https://example.com/hook", "kinds": ["candidate.aborted"]}
    webhook = plane.client.post("/v1/webhooks", json=hook).json()["id"]
    trials.put(2, share=0.1)
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    kind, version, details = trials.told()[-1]
    assert (kind, version, details["actor"]) == ("candidate.aborted", 2, "local")
    assert details["reason"] == "the model was deleted"
    (delivery,) = plane.client.get(f"/v1/webhooks/{webhook}/deliveries").json()["items"]
    assert delivery["payload"]["type"] == "candidate.aborted"
    assert shown(plane, "trials_ended_total", outcome="aborted") == 1


def test_a_new_version_serves_and_ends_the_canary_of_an_older_one(trials: Trials) -> None:
    trials.put(2, share=0.1)
    trials.plane.run_to_end(trials.plane.post_dataset("four"))
    pointer = trials.pointer()
    assert (pointer.version, pointer.candidate) == (4, None)
    kind, version, details = trials.told()[-1]
    assert (kind, version) == ("candidate.aborted", 2)
    assert details["reason"] == "version 4 was published"


def test_a_new_version_becomes_the_canary_if_the_policy_requires_it(trials: Trials) -> None:
    rollout = {"publish_as": "candidate", "share": 0.2, "rule": {"promote_after": 500}}
    policy = {"rollout": rollout}
    assert trials.plane.client.put("/v1/models/scenes/policy", json=policy).status_code == 200
    for name in ("four", "five"):
        assert trials.plane.run_to_end(trials.plane.post_dataset(name)).state == JobState.PUBLISHED
    trial = trials.get()
    assert trial is not None
    assert (trial["version"], trial["share"], trial["rule"]["promote_after"]) == (5, 0.2, 500)
    assert (trial["actor"], trials.pointer().version) == ("reconciler", 3)
    told = [(kind, version) for kind, version, _ in trials.told()]
    assert told == [("candidate.began", 4), ("candidate.aborted", 4), ("candidate.began", 5)]
    # What never answered is not counted as the time until it answers.
    registry = trials.plane.context.metrics.registry
    assert registry.get_sample_value("cmcl_service_post_to_live_seconds_count") == 0


def test_the_first_version_has_no_canary(trials: Trials) -> None:
    trials.plane.create_model("sounds")
    policy = {"rollout": {"publish_as": "candidate", "share": 0.2}}
    trials.plane.client.put("/v1/models/sounds/policy", json=policy)
    trials.plane.run_to_end(trials.plane.post_dataset("one", "sounds"))
    assert trials.plane.answering("sounds") == (1, 1)


def test_without_a_live_version_there_is_no_canary(trials: Trials) -> None:
    trials.plane.create_model("sounds")
    answer = trials.plane.client.put(
        "/v1/models/sounds/candidate", json={"version": 1, "share": 0.1}
    )
    assert answer.status_code == 404
    assert "permitted: none yet" in answer.text
