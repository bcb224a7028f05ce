"""A canary is started, changed and ended by a user."""

import pytest

from cmcl.contract.policy import Canary
from service.states import JobState
from tests.fakes.observations import observe
from tests.unit.service.canary.conftest import CANARY, CanaryApi
from tests.unit.service.telemetry.samples import shown


def test_live_json_has_the_canary_until_its_end(canary_api: CanaryApi) -> None:
    before = canary_api.pointer()
    canary = canary_api.put(2, share=0.1, shadow=0.5)
    during = canary_api.pointer()
    assert during.canary == Canary(version=2, revision=canary["revision"], share=0.1, shadow=0.5)
    assert (during.generation, during.version) == (before.generation, 3)
    assert canary["revision"] == during.revision > before.revision
    assert canary_api.end("enough") == 204
    after = canary_api.pointer()
    assert after.canary is None
    assert after.order > during.order > before.order


def test_events_have_reasons(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1, reason="is it better?")
    canary_api.end("worse on birds")
    began, ended = canary_api.events()
    assert (began[0], began[1], began[2]["reason"]) == ("canary.started", 2, "is it better?")
    assert (ended[0], ended[1], ended[2]["reason"]) == ("canary.aborted", 2, "worse on birds")
    assert ended[2]["actor"] == "local"
    assert canary_api.end() == 404


def test_only_a_servable_version_becomes_the_canary(canary_api: CanaryApi) -> None:
    plane = canary_api.plane
    assert "is live; choose another" in canary_api.put(3, 409)["detail"]
    assert "permitted: 1 to 3" in canary_api.put(9, 404)["errors"][0]["message"]
    assert plane.client.request("DELETE", "/v1/models/scenes/versions/1").status_code == 204
    assert "retired" in canary_api.put(1, 409)["detail"]
    with plane.context.database.write() as connection:
        connection.exec_driver_sql("UPDATE versions SET stored_at = NULL WHERE number = 2")
    assert "being stored" in canary_api.put(2, 409)["detail"]


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
    canary_api: CanaryApi, terms: dict[str, object], words: str
) -> None:
    assert words in str(canary_api.put(2, 422, **terms)["errors"])
    assert canary_api.get() is None


def test_a_canary_requires_the_live_version_that_the_caller_saw(canary_api: CanaryApi) -> None:
    tag = canary_api.plane.client.get("/v1/models/scenes/live").headers["ETag"]
    body = {"version": 2, "share": 0.1}
    for condition, status in (('"1"', 412), (tag, 200)):
        answer = canary_api.plane.client.put(CANARY, json=body, headers={"If-Match": condition})
        assert answer.status_code == status
    assert answer.headers["ETag"] == tag


def test_new_shares_restart_the_observations_and_new_bounds_do_not(canary_api: CanaryApi) -> None:
    first = canary_api.put(2, share=0.1)
    canary_api.pointer()
    observe(canary_api.plane.store, answered=7)
    canary_api.plane.tick(4)
    canary_api.plane.clock.advance(60)
    bounds = canary_api.put(2, share=0.1, rule={"max_error_share": 0.5})
    assert (bounds["revision"], bounds["observed"]["answered"]) == (first["revision"], 7)
    assert bounds["started_at"] == first["started_at"]
    shares = canary_api.put(2, share=0.3, rule={"max_error_share": 0.5})
    assert shares["revision"] > first["revision"]
    assert shares["observed"]["answered"] == 0
    assert shares["started_at"] > first["started_at"], "its observations begin now"
    kinds = [kind for kind, _, _ in canary_api.events()]
    assert kinds == ["canary.started", "canary.changed", "canary.changed"]
    assert canary_api.events()[-1][2]["observed"]["answered"] == 7


def test_the_same_canary_again_changes_nothing(canary_api: CanaryApi) -> None:
    assert canary_api.put(2, share=0.1) == canary_api.put(2, share=0.1)
    assert len(canary_api.events()) == 1


def test_another_canary_takes_the_place_of_the_first(canary_api: CanaryApi) -> None:
    canary_api.put(1, share=0.1)
    canary_api.put(2, share=0.1)
    events = [(kind, version) for kind, version, _ in canary_api.events()]
    assert events == [("canary.started", 1), ("canary.aborted", 1), ("canary.started", 2)]
    assert canary_api.events()[1][2]["reason"] == "version 2 is the canary instead"


def test_ended_canaries_are_listed_with_outcome_and_reason(canary_api: CanaryApi) -> None:
    client = canary_api.plane.client
    assert client.get("/v1/models/scenes/canaries").json()["items"] == []
    canary_api.put(1, share=0.1, reason="is it better?")
    canary_api.put(1, share=0.5, reason="more of it")
    assert canary_api.end("worse on birds") == 204
    canary_api.put(2)
    found = client.get("/v1/models/scenes/canaries").json()["items"]
    shown = [
        (each["version"], each["share"], each["outcome"], each["ended_because"]) for each in found
    ]
    assert shown == [
        (1, 0.1, "changed", "more of it"),
        (1, 0.5, "aborted", "worse on birds"),
        (2, 0.1, None, None),
    ]
    assert [each["revision"] for each in found] == sorted(each["revision"] for each in found)
    running = canary_api.get()
    assert running is not None
    assert {name: found[-1][name] for name in running} == running
    page = client.get("/v1/models/scenes/canaries?order=desc&limit=2").json()
    assert page["items"] == found[:0:-1]
    cursor = page["next_cursor"]
    rest = client.get(f"/v1/models/scenes/canaries?order=desc&limit=2&cursor={cursor}").json()
    assert rest == {"items": found[:1], "next_cursor": None}


def test_promoting_the_canary_ends_it(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1)
    body = {"version": 2, "reason": "looks good"}
    assert canary_api.plane.client.put("/v1/models/scenes/live", json=body).status_code == 200
    pointer = canary_api.pointer()
    assert (pointer.version, pointer.canary) == (2, None)
    assert canary_api.events()[-1][0] == "canary.promoted"
    assert canary_api.events()[-1][2]["reason"] == "looks good"


def test_a_canary_restarts_beside_another_live_version(canary_api: CanaryApi) -> None:
    first = canary_api.put(2, share=0.1)
    canary_api.plane.client.put("/v1/models/scenes/live", json={"version": 1})
    pointer = canary_api.pointer()
    assert pointer.canary is not None
    assert pointer.canary.version == 2
    assert pointer.canary.revision == pointer.revision > first["revision"]


def test_a_canary_is_not_retired(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1)
    retired = canary_api.plane.client.request("DELETE", "/v1/models/scenes/versions/2")
    assert (retired.status_code, "abort it first" in retired.text) == (409, True)


def test_deleting_the_model_ends_its_canary_with_event_webhook_and_metric(
    canary_api: CanaryApi,
) -> None:
    plane = canary_api.plane
    hook = {"url": "https://example.com/hook", "kinds": ["canary.aborted"]}
    webhook = plane.client.post("/v1/webhooks", json=hook).json()["id"]
    canary_api.put(2, share=0.1)
    assert plane.client.request("DELETE", "/v1/models/scenes").status_code == 204
    kind, version, details = canary_api.events()[-1]
    assert (kind, version, details["actor"]) == ("canary.aborted", 2, "local")
    assert details["reason"] == "the model was deleted"
    (delivery,) = plane.client.get(f"/v1/webhooks/{webhook}/deliveries").json()["items"]
    assert delivery["payload"]["type"] == "canary.aborted"
    assert shown(plane, "canaries_ended_total", outcome="aborted") == 1


def test_a_new_version_serves_and_ends_the_canary_of_an_older_one(canary_api: CanaryApi) -> None:
    canary_api.put(2, share=0.1)
    canary_api.plane.run_to_end(canary_api.plane.post_dataset("four"))
    pointer = canary_api.pointer()
    assert (pointer.version, pointer.canary) == (4, None)
    kind, version, details = canary_api.events()[-1]
    assert (kind, version) == ("canary.aborted", 2)
    assert details["reason"] == "version 4 was published"


def test_a_new_version_becomes_the_canary_if_the_policy_requires_it(canary_api: CanaryApi) -> None:
    rollout = {"publish_as": "canary", "share": 0.2, "rule": {"promote_after": 500}}
    policy = {"rollout": rollout}
    assert canary_api.plane.client.put("/v1/models/scenes/policy", json=policy).status_code == 200
    for name in ("four", "five"):
        assert (
            canary_api.plane.run_to_end(canary_api.plane.post_dataset(name)).state
            == JobState.PUBLISHED
        )
    record = canary_api.get()
    assert record is not None
    assert (record["version"], record["share"], record["rule"]["promote_after"]) == (5, 0.2, 500)
    assert (record["actor"], canary_api.pointer().version) == ("reconciler", 3)
    events = [(kind, version) for kind, version, _ in canary_api.events()]
    assert events == [("canary.started", 4), ("canary.aborted", 4), ("canary.started", 5)]
    # A version that never answered adds no sample to the time until it answers.
    registry = canary_api.plane.context.metrics.registry
    assert registry.get_sample_value("cmcl_service_post_to_live_seconds_count") == 0


def test_the_first_version_has_no_canary(canary_api: CanaryApi) -> None:
    canary_api.plane.create_model("sounds")
    policy = {"rollout": {"publish_as": "canary", "share": 0.2}}
    canary_api.plane.client.put("/v1/models/sounds/policy", json=policy)
    canary_api.plane.run_to_end(canary_api.plane.post_dataset("one", "sounds"))
    assert canary_api.plane.answering("sounds") == (1, 1)


def test_without_a_live_version_there_is_no_canary(canary_api: CanaryApi) -> None:
    canary_api.plane.create_model("sounds")
    answer = canary_api.plane.client.put(
        "/v1/models/sounds/canary", json={"version": 1, "share": 0.1}
    )
    assert answer.status_code == 404
    assert "permitted: none yet" in answer.text
