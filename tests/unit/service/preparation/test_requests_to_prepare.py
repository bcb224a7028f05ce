"""Preparation: requests, results, order, rejected rows and dry runs."""

import json
from typing import Any

import pytest
from sqlalchemy import update

from cmcl.contract.api.jobs import FailureReason, JobState
from cmcl.contract.dataset import RejectedRow, RejectedRows
from cmcl.contract.modality import FileEntry
from cmcl.storage import layout
from service.database import tables
from service.database.queries.job_queue import MOST_OF_MODEL
from service.jobs.reconciler import Reconciler
from service.launchers.port import LaunchState
from tests.fakes.control_plane import ControlPlane
from tests.fakes.preparer import (
    fail,
    is_asked,
    manifest_of,
    prepare,
    prepare_all,
    report_progress,
    requests_in,
    write_manifest,
)
from tests.fakes.rounds import run_round
from tests.unit.service.page.browser import Browser, text_of
from tests.unit.service.preparation.conftest import Unattended

BAD_ROW = RejectedRow(
    id="row-7", file="s3://captures/a.jsonl", row=7, place="a.jsonl line 8", reason="no image"
)


def states(plane: Unattended, jobs: list[str]) -> list[JobState]:
    return [plane.job(job).state for job in jobs]


def test_the_request_says_all_that_the_preparation_needs(plane: Unattended) -> None:
    held = plane.shard("held")
    job = plane.post_dataset(evaluation_shards=[held], evaluation_share=0.25, max_bad_share=0.5)
    request = plane.request_of(job)
    dataset = plane.dataset_of(job)
    assert (request.dataset, request.request) == (dataset.id, 1)
    assert (request.model, request.name, request.owner) == ("scenes", "one", dataset.owner)
    assert (request.evaluation_share, request.max_bad_share) == (0.25, 0.5)
    assert [ref.uri for ref in request.evaluation_shards] == [held["uri"]]
    assert request.spec == plane.model().spec
    assert request.encoders.keys() == {"image"}
    assert request.encoders["image"].model == "/models/clip"
    assert (request.identities, request.declared, request.report_version) == ({}, {}, None)
    assert request.allowed_prefixes == plane.context.settings.allowed_prefixes


def test_a_prepared_dataset_is_taken_and_its_request_removed(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    prepare(plane.store, request)
    found = plane.tick_to(job, JobState.PREPARED)
    assert plane.dataset_of(job).manifest == manifest_of(plane.store, request)
    assert not is_asked(plane.store, request.dataset)
    assert found.message is None
    view = plane.client.get(f"/v1/jobs/{job}").json()
    assert view["encoders"] == {"image": "undeclared", "text": "undeclared"}
    assert view["rejected"] is None
    assert plane.launcher.commands == {}


def test_progress_is_shown(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    progress = report_progress(plane.store, request, "encoding", rows_done=512, bad_rows=3)
    plane.tick(2)
    assert plane.job(job).prepare_progress == progress
    for path in (f"jobs/{job}", f"datasets/{request.dataset}"):
        shown = plane.client.get(f"/v1/{path}").json()["preparation"]
        assert (shown["phase"], shown["rows_done"], shown["bad_rows"]) == ("encoding", 512, 3)


def test_a_note_says_why_it_does_not_progress(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    report_progress(plane.store, request, "encoding", note="waits for a GPU")
    plane.tick(2)
    assert plane.job(job).message == "waits for a GPU"
    report_progress(plane.store, request, "encoding", rows_done=1)
    plane.tick(2)
    assert plane.job(job).message is None


def test_rows_that_were_left_out_are_shown(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    entry = FileEntry(sha256="0" * 64, bytes=10)
    rejected = RejectedRows(rows=3, file=entry, first=(BAD_ROW,))
    manifest = manifest_of(plane.store, request).model_copy(update={"rejected": rejected})
    write_manifest(plane.store, manifest)
    plane.tick_to(job, JobState.PREPARED)
    for path in (f"jobs/{job}", f"datasets/{request.dataset}"):
        shown = plane.client.get(f"/v1/{path}").json()["rejected"]
        assert (shown["rows"], shown["first"][0]["reason"]) == (3, "no image")


def test_warnings_about_rows_that_are_used_are_shown(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    warnings = ("5 of 16 rows have a picture of one flat colour",)
    manifest = manifest_of(plane.store, request).model_copy(update={"warnings": warnings})
    write_manifest(plane.store, manifest)
    assert plane.client.get(f"/v1/jobs/{job}").json()["warnings"] == []
    plane.tick_to(job, JobState.PREPARED)
    for path in (f"jobs/{job}", f"datasets/{request.dataset}"):
        assert plane.client.get(f"/v1/{path}").json()["warnings"] == list(warnings)
    page = Browser(plane).get(f"/ui/datasets/{request.dataset}").text
    assert warnings[0] in text_of(page)


def test_an_invalid_dataset_is_quarantined_with_its_rows(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    known = {"rejected": [BAD_ROW], "rejected_rows": 25}
    fail(plane.store, request, "invalid_dataset", "too many bad rows", **known)
    found = plane.tick_to(job, JobState.FAILED)
    assert (found.reason, found.message) == (FailureReason.INVALID_DATASET, "too many bad rows")
    dataset = plane.dataset_of(job)
    assert (dataset.quarantine_reason, dataset.fingerprint) == ("too many bad rows", None)
    assert not is_asked(plane.store, request.dataset)
    shown = plane.client.get(f"/v1/datasets/{dataset.id}").json()
    assert shown["rejected"]["first"][0]["id"] == "row-7"
    assert shown["rejected"]["rows"] == 25


@pytest.mark.parametrize("reason", ["encoder_mismatch", "encoder_unavailable"])
def test_an_encoder_that_cannot_be_used_quarantines_nothing(plane: Unattended, reason: str) -> None:
    job = plane.post_dataset()
    fail(plane.store, plane.request_of(job), reason, "width is 5, expected 4")
    found = plane.tick_to(job, JobState.FAILED)
    assert (found.reason, found.message) == (reason, "width is 5, expected 4")
    assert plane.dataset_of(job).quarantine_reason is None


def test_a_retry_is_another_request_and_earlier_results_do_not_count(plane: Unattended) -> None:
    job = plane.post_dataset()
    first = plane.request_of(job)
    fail(plane.store, first, "invalid_dataset", "no image")
    plane.tick_to(job, JobState.FAILED)
    assert plane.client.post(f"/v1/jobs/{job}/retry").status_code == 202
    second = plane.request_of(job)
    assert (first.request, second.request) == (1, 2)
    report_progress(plane.store, first, "encoding", rows_done=9)
    plane.tick(3)
    assert plane.job(job).state == JobState.PREPARING
    assert plane.job(job).prepare_progress is None
    prepare(plane.store, second)
    plane.tick_to(job, JobState.PREPARED)
    assert plane.dataset_of(job).quarantine_reason is None


def test_a_manifest_counts_even_if_its_driver_failed_later(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    prepare(plane.store, request)
    fail(plane.store, request, "encoder_unavailable", "the node is gone")
    plane.tick_to(job, JobState.PREPARED)


def test_a_manifest_that_cannot_be_read_quarantines_the_dataset(plane: Unattended) -> None:
    job = plane.post_dataset()
    plane.store.put(layout.dataset_manifest(plane.request_of(job).dataset), b"{}")
    assert plane.tick_to(job, JobState.FAILED).reason == FailureReason.INVALID_DATASET


def test_a_manifest_of_another_dataset_is_not_learned(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    swapped = manifest_of(plane.store, request).model_copy(update={"pair": request.pair.swapped()})
    write_manifest(plane.store, swapped)
    assert plane.tick_to(job, JobState.FAILED).reason == FailureReason.INVALID_DATASET


def test_progress_that_cannot_be_read_is_ignored(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    plane.store.put(layout.preparation_file(request.dataset, "progress"), b"{")
    plane.tick(3)
    assert plane.job(job).state == JobState.PREPARING
    prepare(plane.store, request)
    plane.tick_to(job, JobState.PREPARED)


def test_a_cancelled_preparation_loses_its_request(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    assert plane.client.post(f"/v1/jobs/{job}/cancel").status_code == 202
    plane.tick()
    assert plane.job(job).state == JobState.CANCELLED
    assert not is_asked(plane.store, request.dataset)


def test_a_request_that_was_removed_is_written_again(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    plane.store.delete(layout.preparation_request(request.dataset))
    plane.tick(40)
    assert requests_in(plane.store) == [request]


def test_another_process_continues_with_the_same_request(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    plane.reconciler = Reconciler(plane.context)
    plane.clock.advance(5)
    plane.tick(3)
    assert requests_in(plane.store) == [request]
    assert plane.job(job).preparation == 1


def test_a_preparation_without_progress_fails_at_its_deadline(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    report_progress(plane.store, request, "encoding", rows_done=5, note="the bucket is away")
    for _ in range(2):
        plane.clock.advance(1801)
        plane.tick()
    found = plane.job(job)
    assert (found.state, found.reason) == (JobState.FAILED, FailureReason.PREPARE_DEADLINE)
    assert "no progress for 3600 s" in (found.message or "")
    assert "the bucket is away" in (found.message or "")
    assert not is_asked(plane.store, request.dataset)


def test_progress_moves_the_deadline(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    for rows in range(4):
        report_progress(plane.store, request, "reading", rows_done=rows)
        plane.clock.advance(3000)
        plane.tick()
    for _ in range(4):
        report_progress(plane.store, request, "waiting")
        plane.clock.advance(3000)
        plane.tick()
    assert plane.job(job).state == JobState.PREPARING


def test_the_same_rows_again_are_no_progress(plane: Unattended) -> None:
    """A row ends its process whenever it is encoded, and the driver restarts indefinitely."""
    job = plane.post_dataset()
    request = plane.request_of(job)
    for phase, rows in 3 * [("planning", 0), ("encoding", 512), ("encoding", 700)]:
        report_progress(plane.store, request, phase, rows_done=rows)
        plane.clock.advance(900)
        plane.tick()
    assert plane.job(job).reason == FailureReason.PREPARE_DEADLINE


def test_after_a_restart_of_the_service_the_deadline_begins_again(plane: Unattended) -> None:
    job = plane.post_dataset()
    plane.request_of(job)
    plane.clock.advance(10_000)
    plane.reconciler = Reconciler(plane.context)
    plane.tick(3)
    assert plane.job(job).state == JobState.PREPARING


def test_results_are_read_less_often_the_longer_it_takes(plane: Unattended) -> None:
    plane.request_of(plane.post_dataset())
    plane.clock.advance(60)
    plane.tick()
    plane.store.calls.clear()
    for _ in range(100):
        run_round(plane.reconciler)
        plane.clock.advance(0.2)
    looks = [key for key in plane.store.calls if key.endswith("manifest.json")]
    assert 9 <= len(looks) <= 11
    assert len(plane.store.calls) <= 3 * len(looks) + 1


def test_a_late_failure_cannot_quarantine_a_prepared_dataset(plane: Unattended) -> None:
    job = plane.post_dataset()
    request = plane.request_of(job)
    prepare(plane.store, request)
    plane.tick_to(job, JobState.PREPARED)
    fail(plane.store, request, "invalid_dataset", "the file is gone by now")
    plane.tick(3)
    assert plane.job(job).reason is None
    assert plane.dataset_of(job).quarantine_reason is None


def test_the_first_of_a_model_are_prepared_and_the_others_wait(plane: Unattended) -> None:
    jobs = [plane.post_dataset(f"data-{number}") for number in range(MOST_OF_MODEL + 2)]
    plane.tick(4)
    assert states(plane, jobs) == [JobState.PREPARING] * MOST_OF_MODEL + [JobState.QUEUED] * 2
    prepare(plane.store, plane.request_of(jobs[3]))
    plane.tick(4)
    # The number of datasets prepared ahead is bounded too.
    assert plane.job(jobs[3]).state == JobState.PREPARED
    assert states(plane, jobs[-2:]) == [JobState.QUEUED] * 2
    prepare(plane.store, plane.request_of(jobs[0]))
    plane.tick(6)
    assert plane.job(jobs[0]).state == JobState.RUNNING
    assert states(plane, jobs[-2:]) == [JobState.PREPARING, JobState.QUEUED]


def test_datasets_are_learned_in_the_order_of_their_arrival(plane: Unattended) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    prepare(plane.store, plane.request_of(second))
    plane.tick_to(second, JobState.PREPARED)
    plane.tick(5)
    assert plane.job(second).state == JobState.PREPARED
    assert "waits for its turn" in (plane.job(second).message or "")
    prepare(plane.store, plane.request_of(first))
    plane.run_to_end(first)
    plane.run_to_end(second)
    assert [version.job for version in plane.versions()] == [first, second]


def test_a_job_that_failed_keeps_no_other_waiting(plane: Unattended) -> None:
    first, second = plane.post_dataset("one"), plane.post_dataset("two")
    prepare(plane.store, plane.request_of(second))
    fail(plane.store, plane.request_of(first), "invalid_dataset", "no image")
    assert plane.run_to_end(second).state == JobState.PUBLISHED


def test_an_old_job_that_is_retried_is_prepared_before_those_behind_it(plane: Unattended) -> None:
    old = plane.post_dataset("old")
    fail(plane.store, plane.request_of(old), "encoder_unavailable", "no node has it")
    plane.tick_to(old, JobState.FAILED)
    others = [plane.post_dataset(f"data-{number}") for number in range(MOST_OF_MODEL)]
    plane.tick(4)
    assert states(plane, others) == [JobState.PREPARING] * MOST_OF_MODEL
    assert plane.client.post(f"/v1/jobs/{old}/retry").status_code == 202
    plane.tick(3)
    assert plane.job(old).state == JobState.PREPARING


def test_a_lost_attempt_does_not_prepare_its_dataset_again(plane: Unattended) -> None:
    plane.preparer = prepare_all
    job = plane.post_dataset()
    plane.tick_to(job, JobState.RUNNING)
    plane.launcher.end(f"{job}-a1", LaunchState.FAILED, "killed")
    plane.store.calls.clear()
    found = plane.tick_to(job, JobState.PREPARED)
    plane.tick_to(job, JobState.RUNNING)
    assert (found.preparation, plane.job(job).attempt) == (1, 2)
    assert not [key for key in plane.store.calls if key.startswith(layout.preparations())]


def test_errors_of_one_preparation_do_not_delay_another(plane: Unattended) -> None:
    broken, sound = plane.post_dataset("broken"), plane.post_dataset("sound")
    requests = [plane.request_of(job) for job in (broken, sound)]
    plane.store.broken = requests[0].dataset
    prepare(plane.store, requests[1])
    plane.tick_to(sound, JobState.PREPARED)
    assert "waiting" in (plane.job(broken).message or "")


def test_a_row_that_cannot_be_read_stops_no_other_model(plane: Unattended) -> None:
    plane.create_model("sounds")
    plane.post_dataset("broken")
    sound = plane.post_dataset("sound", "sounds")
    with plane.context.database.write() as connection:
        broken = update(tables.jobs).where(tables.jobs.c.model == "scenes")
        connection.execute(broken.values(prepare_progress={"phase": "lunch"}))
    prepare(plane.store, plane.request_of(sound))
    plane.tick_to(sound, JobState.RUNNING)


def write(plane: ControlPlane, dataset: str, rows: int, reason: str = "no image") -> None:
    lines = [
        RejectedRow(
            id=f"row-{row}",
            file="s3://captures/a.jsonl",
            row=row,
            place="a.jsonl line 8",
            reason=reason,
        )
        for row in range(rows)
    ]
    text = "".join(f"{line.model_dump_json()}\n" for line in lines)
    plane.store.put(layout.rejected_rows(dataset), text.encode())


def read_all(plane: ControlPlane, dataset: str, limit: int) -> list[list[int]]:
    """The rows of each page."""
    pages, cursor = [], None
    while True:
        query = f"?limit={limit}" + (f"&cursor={cursor}" if cursor else "")
        answer = plane.client.get(f"/v1/datasets/{dataset}/rejected-rows{query}")
        assert answer.status_code == 200, answer.text
        pages.append([item["row"] for item in answer.json()["items"]])
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return pages


def test_every_row_is_on_one_page(plane: ControlPlane) -> None:
    dataset = str(plane.job(plane.post_dataset()).dataset)
    write(plane, dataset, 7)
    assert read_all(plane, dataset, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert read_all(plane, dataset, 7) == [list(range(7))]


def test_long_reasons_take_more_pages_and_lose_no_row(plane: ControlPlane) -> None:
    dataset = str(plane.job(plane.post_dataset()).dataset)
    write(plane, dataset, 9, reason="x" * 100_000)
    pages = read_all(plane, dataset, 200)
    assert [row for page in pages for row in page] == list(range(9))
    write(plane, dataset, 2, reason="x" * 400_000)
    assert read_all(plane, dataset, 200) == [[0], [1]]


def test_without_rejected_rows_the_list_is_empty(plane: ControlPlane) -> None:
    job = plane.post_dataset()
    assert read_all(plane, str(plane.job(job).dataset), 50) == [[]]
    plane.preparer = prepare_all
    plane.tick_to(job, JobState.RUNNING)
    assert read_all(plane, str(plane.job(job).dataset), 50) == [[]]


def test_a_cursor_within_a_row_is_refused(plane: ControlPlane) -> None:
    dataset = str(plane.job(plane.post_dataset()).dataset)
    write(plane, dataset, 3)
    path = f"/v1/datasets/{dataset}/rejected-rows?limit=1&cursor=YXNjOjc"
    answer = plane.client.get(path)
    assert answer.status_code == 422, json.dumps(answer.json())
    assert answer.json()["errors"][0]["field"] == "cursor"


def dry_run(plane: Unattended, name: str = "tried", **changes: Any) -> str:
    return plane.post_dataset(name, dry_run=True, **changes)


def test_a_dry_run_ends_with_its_report(plane: Unattended) -> None:
    job = dry_run(plane)
    request = plane.request_of(job)
    assert request.report_version == 0
    prepare(plane.store, request)
    plane.tick_to(job, JobState.REPORTED)
    for path in (f"jobs/{job}", f"datasets/{request.dataset}"):
        view = plane.client.get(f"/v1/{path}").json()
        assert (view["dry_run"], view["report"]["rows"]) == (True, 16)
        assert view["report"]["advice"] == ["text: nothing is odd"]
    assert not is_asked(plane.store, request.dataset)
    plane.tick(5)
    assert plane.launcher.commands == {}
    assert plane.model().head == 0


def test_a_dry_run_is_compared_with_the_newest_version(plane: Unattended) -> None:
    plane.preparer = prepare_all
    plane.run_to_end(plane.post_dataset())
    plane.preparer = lambda _: None
    assert plane.request_of(dry_run(plane)).report_version == 1


def test_a_dry_run_waits_for_no_training_and_delays_none(plane: Unattended) -> None:
    tried, learned = dry_run(plane), plane.post_dataset("learned")
    prepare(plane.store, plane.request_of(learned))
    plane.tick_to(learned, JobState.RUNNING)
    later = dry_run(plane, "later")
    prepare(plane.store, plane.request_of(later))
    plane.tick_to(later, JobState.REPORTED)
    assert plane.job(tried).state == JobState.PREPARING
    assert plane.run_to_end(learned).state == JobState.PUBLISHED


def test_the_dataset_itself_and_the_same_dry_run_can_be_posted_afterwards(
    plane: Unattended,
) -> None:
    body = plane.dataset_body("one", dry_run=True)
    first = plane.client.post("/v1/datasets", json=body).json()["job"]["id"]
    again = plane.client.post("/v1/datasets", json=body)
    assert (again.status_code, again.json()["job"]["id"]) == (200, first)
    real = plane.client.post("/v1/datasets", json={**body, "dry_run": False})
    assert real.status_code == 202
    prepare(plane.store, plane.request_of(first))
    plane.tick_to(first, JobState.REPORTED)
    repeated = plane.client.post("/v1/datasets", json=body)
    assert repeated.status_code == 202
    assert repeated.json()["job"]["id"] != first


def test_a_dry_run_of_unusable_files_fails_with_the_reason(plane: Unattended) -> None:
    job = dry_run(plane)
    fail(plane.store, plane.request_of(job), "invalid_dataset", "no image")
    assert plane.tick_to(job, JobState.FAILED).reason == FailureReason.INVALID_DATASET


def test_a_manifest_is_no_result_of_a_dry_run(plane: Unattended) -> None:
    job = dry_run(plane)
    request = plane.request_of(job).model_copy(update={"report_version": None})
    prepare(plane.store, request)
    plane.tick(4)
    assert plane.job(job).state == JobState.PREPARING


def test_a_reported_job_can_be_neither_retried_nor_cancelled(plane: Unattended) -> None:
    job = dry_run(plane)
    prepare(plane.store, plane.request_of(job))
    plane.tick_to(job, JobState.REPORTED)
    for action in ("retry", "cancel"):
        assert plane.client.post(f"/v1/jobs/{job}/{action}").status_code == 409
    path = f"/v1/datasets/{plane.job(job).dataset}"
    assert plane.client.request("DELETE", path).status_code == 204
