"""Every call against the real control plane in this process, on both clients."""

import pytest

from cmcl import Client, CmclError
from cmcl.client import Job
from cmcl.contract.api.jobs import JobState
from cmcl.contract.model import Gate, ModelSpec
from tests.fakes.control_plane import SPEC, ControlPlane
from tests.fakes.feature_shards import feature_table, table_with_nan, write_shard
from tests.fakes.trainer import train
from tests.unit.client.either import KINDS

PAIR = ("image", "text")
SCENES = ModelSpec.model_validate(SPEC)

# The call for each route. A new route needs a call, or a reason to have none.
ASKED_BY = {
    "post_model": "create_model",
    "list_models": "models",
    "list_encoders": "encoders",
    "read_model": "model",
    "delete_model": "delete_model",
    "post_branch": "branch_model",
    "put_modality": "add_modality",
    "post_merge": "merge_model",
    "read_gate": "gate",
    "put_gate": "set_gate",
    "list_versions": "versions",
    "read_version": "version",
    "retire_version": "retire_version",
    "read_live": "live",
    "put_live": "promote",
    "post_rollback": "roll_back",
    "list_promotions": "promotions",
    "read_capacity": "capacity",
    "read_summary": "summary",
    "read_query_drift": "query_drift",
    "list_summaries": "overview",
    "post_upload": "upload",
    "read_upload": "upload_state",
    "delete_upload": "abort_upload",
    "put_file": "upload",
    "post_dataset": "add_dataset",
    "list_datasets": "datasets",
    "read_dataset": "dataset",
    "delete_dataset": "delete_dataset",
    "list_rejected_rows": "rejected_rows",
    "append_shards": "append_shards",
    "post_seal": "seal_dataset",
    "list_jobs": "jobs",
    "read_job": "job",
    "read_candidate": "candidate",
    "list_attempts": "attempts",
    "read_progress": "progress",
    "read_phases": "phases",
    "read_log": "log",
    "cancel_job": "cancel",
    "retry_job": "retry",
    "approve_job": "approve",
    "reject_job": "reject",
    "erase_row": "erase_row",
    "list_events": "all_events",
    "follow_job": "events",
    "post_webhook": "create_webhook",
    "list_webhooks": "webhooks",
    "read_webhook": "webhook",
    "remove_webhook": "delete_webhook",
    "list_deliveries": "deliveries",
    "send_test_message": "test_webhook",
    "whoami": "whoami",
    "read_quotas": "quotas",
    "post_key": "create_key",
    "list_keys": "keys",
    "read_key": "key",
    "delete_key": "revoke_key",
}
FOR_MACHINES = {"healthz", "readyz", "metrics"}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def post(service: Client, plane: ControlPlane, name: str = "one") -> Job:
    shard = plane.shard(name)["uri"]
    return service.add_dataset("scenes", name, PAIR, [shard]).job


def test_every_route_has_a_call_or_is_for_machines(plane: ControlPlane) -> None:
    paths = plane.app.openapi()["paths"].values()
    routes = {operation["operationId"] for path in paths for operation in path.values()}
    assert routes - FOR_MACHINES == set(ASKED_BY)
    assert [name for name in ASKED_BY.values() if not hasattr(Client, name)] == []


def test_branches_are_merged_and_a_dataset_is_unlearned(
    published: Client, published_plane: ControlPlane
) -> None:
    published.branch_model("scenes", 1, "branch")
    published_plane.tick(3)
    merge = published.merge_model("branch", "scenes@2")
    assert (merge.kind, merge.dataset, str(merge.merges)) == ("merge", None, "scenes@2")
    published_plane.run_to_end(merge.id)
    merged = published.version("branch", 2)
    assert (merged.kind, merged.dataset) == ("merge", None)
    assert [line.name for line in merged.lineage] == ["one", "two"]
    dataset = merged.lineage[1].dataset
    unlearning = published.unlearn_dataset(dataset, "branch")
    assert (unlearning.kind, unlearning.dataset) == ("unlearn", dataset)
    assert published.unlearn_dataset(dataset, "branch").id == unlearning.id
    published_plane.run_to_end(unlearning.id)
    assert [line.name for line in published.version("branch", 3).lineage] == ["one"]
    assert published.dataset(dataset).id == dataset
    with pytest.raises(CmclError) as caught:
        published.merge_model("branch", "branch@1")
    assert caught.value.status == 409


def test_a_gate_is_changed_only_at_the_revision_that_was_read(published: Client) -> None:
    before = published.gate("scenes")
    strict = Gate(max_drift=0.2, manual_approval=True)
    after = published.set_gate("scenes", strict, before.revision)
    assert (after.max_drift, after.manual_approval) == (0.2, True)
    assert published.gate("scenes") == after
    with pytest.raises(CmclError) as caught:
        published.set_gate("scenes", Gate(), before.revision)
    assert (caught.value.status, caught.value.type) == (412, "urn:cmcl:problem:precondition-failed")


def test_versions_are_listed_and_read_completely(published: Client) -> None:
    assert [version.version for version in published.versions("scenes")] == [1, 2]
    second = published.version("scenes", 2)
    assert [line.name for line in second.lineage] == ["one", "two"]
    assert [row.version for row in second.evaluation_matrix] == [1, 2]
    assert second.certificate.drift.keys() == {second.lineage[0].dataset}
    assert second.report.updates == second.manifest.report.updates


def test_models_are_seen_at_a_glance_and_over_their_versions(published: Client) -> None:
    summary = published.summary("scenes")
    assert list(published.overview()) == [summary]
    assert (summary.live_version, summary.jobs.waiting, summary.current) == (2, 0, None)
    assert summary.newest is not None
    assert summary.newest.dataset_name == "two"
    assert summary.last_ended is not None
    assert summary.last_ended.state == "published"
    first, second = published.versions("scenes", by_dataset=True)
    assert [each.version for each in published.versions("scenes", "desc")] == [2, 1]
    assert second.by_dataset is not None
    assert second.by_dataset.drift == {first.dataset: second.max_drift}
    assert [each.by_dataset for each in published.versions("scenes")] == [None] * 2
    room = published.capacity("scenes", limit=1)
    assert (room.version, room.modalities) == (2, {})
    assert room.remark is not None


def test_the_live_version_is_promoted_and_rolled_back_with_its_history(published: Client) -> None:
    live = published.live("scenes")
    assert live.version == 2
    moved = published.promote("scenes", 1, "worse on birds", live.generation)
    with pytest.raises(CmclError) as caught:
        published.promote("scenes", 2, if_generation=live.generation)
    assert caught.value.status == 412
    assert published.roll_back("scenes", "better after all", moved.generation).version == 2
    history = list(published.promotions("scenes"))
    assert [change.kind for change in history] == [
        "published",
        "published",
        "promoted",
        "rolled_back",
    ]
    assert [change.reason for change in history[2:]] == ["worse on birds", "better after all"]
    published.retire_version("scenes", 1)
    assert published.version("scenes", 1).retired_at is not None


def test_a_dataset_becomes_a_job_and_posting_it_again_returns_the_same(
    service: Client, plane: ControlPlane
) -> None:
    service.create_model("scenes", SCENES)
    shard = plane.shard("one")["uri"]
    first = service.add_dataset("scenes", "one", PAIR, [shard], evaluation_share=0.25)
    again = service.add_dataset("scenes", "one", PAIR, [shard], evaluation_share=0.25)
    assert first == again
    assert [job.id for job in service.jobs("scenes", "queued")] == [first.job.id]
    assert [dataset.id for dataset in service.datasets("scenes")] == [first.dataset.id]
    found = service.dataset(first.dataset.id)
    assert (found.shards[0].uri, found.evaluation_share) == (shard, 0.25)


def test_an_open_dataset_grows_and_is_sealed_or_deleted(
    service: Client, plane: ControlPlane
) -> None:
    service.create_model("scenes", SCENES)
    opened = service.open_dataset("scenes", "many", PAIR)
    assert (opened.job, opened.sealed_at) == (None, None)
    grown = service.append_shards(opened.id, [plane.shard("a")["uri"], plane.shard("b")["uri"]])
    assert len(grown.shards) == 2
    sealed = service.seal_dataset(opened.id)
    assert sealed.job.state == "queued"
    assert service.seal_dataset(opened.id).job.id == sealed.job.id
    other = service.open_dataset("scenes", "none", PAIR)
    service.delete_dataset(other.id)
    with pytest.raises(CmclError) as caught:
        service.dataset(other.id)
    assert caught.value.status == 404


def test_jobs_are_cancelled_retried_approved_and_rejected(
    published: Client, published_plane: ControlPlane
) -> None:
    assert published.cancel(post(published, published_plane, "three").id).state == "cancelled"
    bad = write_shard(published_plane.shards / "bad.parquet", table_with_nan(16))
    failed = published.add_dataset("scenes", "bad", PAIR, [bad]).job.id
    assert published_plane.run_to_end(failed).state == JobState.FAILED
    assert published.job(failed).reason == "invalid_dataset"
    with pytest.raises(CmclError):
        published.reject(failed)
    write_shard(published_plane.shards / "bad.parquet", feature_table(16))
    assert published.retry(failed).state == "queued"
    published_plane.run_to_end(failed)
    published.set_gate("scenes", Gate(manual_approval=True))
    for word, state in (("approve", JobState.PUBLISHED), ("reject", JobState.REJECTED)):
        job = post(published, published_plane, word).id
        running = published_plane.tick_to(job, JobState.RUNNING)
        train(published_plane.store, job, running.attempt)
        published_plane.tick_to(job, JobState.HELD)
        candidate = published.candidate(job)
        assert [each.is_new for each in candidate.datasets] == [False] * (
            len(candidate.datasets) - 1
        ) + [True]
        assert [bound.name for bound in candidate.bounds] == [
            "max_drift",
            "min_backward_transfer",
            "min_overlap",
            "min_gain",
            "min_agreement",
        ]
        getattr(published, word)(job, "because")
        assert published_plane.run_to_end(job).state == state
        found = published.job(job)
        assert "because" in f"{found.approval} {found.message}"
    assert published.retry(job).state == "queued"


def test_events_are_received_from_the_first_to_the_last(published: Client) -> None:
    found = list(published.all_events("scenes", ["version.published"]))
    assert [event.version for event in found] == [1, 2]
    jobs = list(published.jobs("scenes"))
    kinds = [event.kind for event in published.events(jobs[0].id) if event.id]
    assert kinds[0] == "job.queued"
    assert "job.published" in kinds[-2:]


def test_keys_are_created_shown_once_and_revoked(service: Client) -> None:
    assert "admin" in service.whoami().scopes
    made = service.create_key("robot", ["read", "train"], owner="robots", expires_in_days=3)
    assert made.key is not None
    assert made.key.get_secret_value().startswith("cmcl_")
    service.revoke_key(made.id)
    (found,) = service.keys()
    assert found == service.key(made.id)
    assert (found.owner, found.scopes, found.revoked_at is None) == (
        "robots",
        ["read", "train"],
        False,
    )


def test_webhooks_are_created_tested_and_deleted(service: Client) -> None:
    made = service.create_webhook("https://example.com/hook", ["job.failed"])
    assert made.secret is not None
    assert made.secret.get_secret_value().startswith("whsec_")
    sent = service.test_webhook(made.id)
    assert [delivery.id for delivery in service.deliveries(made.id)] == [sent.id]
    assert [hook.kinds for hook in service.webhooks()] == [["job.failed"]]
    assert service.webhook(made.id).url == "https://example.com/hook"
    service.delete_webhook(made.id)
    assert list(service.webhooks()) == []
