"""Every command against a real control plane, as text and as JSON."""

import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cmcl.cli.errors import Exit
from cmcl.contract.api.jobs import JobState
from service.database.engine import Seek
from service.database.queries import jobs
from service.database.rows import JobRow
from tests.fakes.control_plane import ControlPlane
from tests.fakes.feature_shards import feature_table, table_with_nan, write_shard
from tests.fakes.trainer import train
from tests.fakes.waiting import until
from tests.unit.client.command_line import Cmcl

WIDTHS = ["--modality=image=4", "--modality=text=3", "--width=8"]


@pytest.fixture
def plane(published_plane: ControlPlane) -> ControlPlane:
    return published_plane


def in_background(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def train_next(plane: ControlPlane) -> threading.Thread:
    """Train the next job to its end in a thread."""

    def all_jobs() -> list[JobRow]:
        with plane.context.database.read() as connection:
            return jobs.page(connection, {}, Seek(limit=99))

    known = len(all_jobs())

    def act() -> None:
        until(lambda: len(all_jobs()) > known)
        plane.run_to_end(all_jobs()[-1].id)

    return in_background(act)


def test_models_are_created_shown_branched_and_deleted(cmcl: Cmcl) -> None:
    assert "image 4, text 3" in cmcl("model", "create", "trees", *WIDTHS)
    assert cmcl.one("model", "create", "trees", *WIDTHS)["width"] == 8
    assert "version 1 of scenes" in cmcl("model", "branch", "scenes", "1", "branch")
    assert "version 1 of scenes" in cmcl("model", "branch", "scenes@1", "branch")
    assert [model["name"] for model in cmcl.lines("model", "list")] == ["branch", "scenes", "trees"]
    table = cmcl("model", "list")
    assert "│ scenes │ improve │ 2    │ 2" in table
    assert re.search(r"branched from +scenes@1", cmcl("model", "show", "branch"))
    cmcl("model", "delete", "trees", "--yes")
    assert "trees" not in cmcl("model", "list")


def test_a_model_is_given_priority_and_keeps_its_bounds(cmcl: Cmcl) -> None:
    cmcl("model", "gate", "scenes", "--max-drift=0.3")
    changed = cmcl.one("model", "gate", "scenes", "--priority=high")
    assert (changed["priority"], changed["max_drift"]) == ("high", 0.3)
    assert "priority               high" in cmcl("model", "gate", "scenes")
    assert "min overlap            -" in cmcl("model", "gate", "scenes")
    shown = cmcl("model", "gate", "scenes", "--bounds=auto")
    assert re.findall("(.*) by chance", shown) == [
        "min backward transfer ",
        "min overlap           ",
        "min agreement         ",
    ]


def test_a_folder_is_added_and_watched_to_its_version(
    cmcl: Cmcl, plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "My Birds_2"
    for name in ("a", "b"):
        write_shard(folder / f"{name}.parquet", feature_table(16, prefix=name))
    monkeypatch.setenv("CMCL_MODEL", "scenes")
    thread = train_next(plane)
    out = cmcl("dataset", "add", str(folder), "--pair", "image,text", "--watch")
    thread.join()
    assert "published as version 3" in out
    added = cmcl.lines("dataset", "list")[-1]
    assert (added["name"], added["rows"]) == ("my-birds-2", 32)
    assert "upload:up-" in cmcl("dataset", "show", added["id"])


def test_watching_as_json_is_a_line_for_each_change(
    cmcl: Cmcl, plane: ControlPlane, tmp_path: Path
) -> None:
    shard = plane.shard("three")["uri"]
    thread = train_next(plane)
    arguments = ("dataset", "add", shard, "--pair=image,text", "--model=scenes", "--watch")
    accepted, *changes = cmcl.lines(*arguments)
    thread.join()
    assert accepted["dataset"]["name"] == "three"
    assert {change["id"] for change in changes} == {accepted["job"]["id"]}
    assert changes[-1]["state"] == "published"


def test_a_job_that_ends_without_a_version_has_its_own_exit_code(
    cmcl: Cmcl, plane: ControlPlane
) -> None:
    bad = write_shard(plane.shards / "bad.parquet", table_with_nan(16)).uri
    job = cmcl.one("dataset", "add", bad, "--pair=image,text", "--model=scenes")["job"]["id"]
    plane.run_to_end(job)
    words = cmcl("job", "watch", job, code=Exit.NO_VERSION)
    assert words.splitlines()[0] == f"{job}: failed"
    assert words.splitlines()[1].startswith(f"error: job {job} ended as failed: ")
    assert "quarantined" in cmcl("dataset", "list")
    assert cmcl.one("job", "retry", job)["state"] == "queued"
    assert cmcl.one("job", "cancel", job)["state"] == "cancelled"


def test_branches_are_merged_and_datasets_unlearned(cmcl: Cmcl, plane: ControlPlane) -> None:
    cmcl("model", "branch", "scenes@1", "branch")
    plane.tick(3)
    thread = train_next(plane)
    said = cmcl("model", "merge", "branch", "--from", "scenes@2", "--watch")
    thread.join()
    assert "merges scenes@2 into model branch" in said
    assert "published as version 2" in said
    assert "kind" in cmcl("job", "show", said.split()[1])
    assert "scenes@2" in cmcl("version", "list", "branch")
    two = plane.versions()[1].manifest.dataset
    thread = train_next(plane)
    said = cmcl("dataset", "delete", str(two), "--unlearn", "--watch")
    thread.join()
    assert f"unlearns dataset {two} from model scenes" in said
    assert "published as version 3" in said
    assert "unlearn" in cmcl("version", "show", "scenes@3")
    assert cmcl.one("version", "show", "scenes@3")["kind"] == "unlearn"
    cmcl("dataset", "delete", str(two), "--watch", code=Exit.USAGE)
    cmcl("model", "merge", "branch", "--from", "scenes", code=Exit.FAILED)


def test_a_row_is_erased(cmcl: Cmcl, plane: ControlPlane, tmp_path: Path) -> None:
    item = tmp_path / "row.json"
    item.write_text('{"image": [1, 2, 3, 4], "text": [1, 2, 3]}')
    one = str(plane.versions()[0].manifest.dataset)
    assert "is not erasable" in cmcl("dataset", "erase", one, f"--item={item}", code=Exit.FAILED)
    cmcl("model", "create", "erasable", *WIDTHS, "--erasable")
    plane.run_to_end(plane.post_dataset("one", "erasable"))
    one = str(plane.versions("erasable")[0].manifest.dataset)
    thread = train_next(plane)
    said = cmcl("dataset", "erase", one, f"--item={item}", "--watch")
    thread.join()
    assert f"erases a row of dataset {one} from model erasable" in said
    again = cmcl("dataset", "erase", one, f"--item={item}", "--watch")
    assert "has erased this row before: erasable@2" in again
    assert "published as" not in again
    shown = cmcl("version", "show", "erasable@2")
    assert "erased a row of" in shown
    (receipt,) = plane.versions("erasable")[-1].manifest.learned[0].erased
    assert receipt.row in shown
    assert "not signed" in " ".join(shown.split())
    item.write_text("[1, 2]")
    cmcl("dataset", "erase", one, f"--item={item}", code=Exit.USAGE)


def test_candidates_are_approved_and_rejected(cmcl: Cmcl, plane: ControlPlane) -> None:
    cmcl("model", "gate", "scenes", "--manual-approval")
    for word, said in (("approve", "approved"), ("reject", "rejected")):
        job = plane.post_dataset(word)
        attempt = plane.tick_to(job, JobState.RUNNING).attempt
        train(plane.store, job, attempt)
        plane.tick_to(job, JobState.HELD)
        shown = cmcl("job", "show", job)
        assert f"{word} (new)" in shown
        assert "bounds of the gate" in shown
        document = cmcl.one("job", "show", job)
        assert document["state"] == "held"
        assert document["candidate"]["dataset_name"] == word
        assert [each["outcome"] for each in document["attempts"]] == ["candidate"]
        assert said in cmcl("job", word, job, "--reason", "because")
        plane.run_to_end(job)
    assert "because" in cmcl("version", "show", "scenes@3")
    shown = cmcl("job", "show", job)
    assert "because" in shown
    assert "reject (new)" in shown
    assert f"{job}: queued" in cmcl("job", "retry", job)


def test_models_are_shown_at_a_glance(cmcl: Cmcl, plane: ControlPlane) -> None:
    waiting = plane.post_dataset("waiting")
    table = cmcl("model", "list")
    assert "1 waiting" in table
    assert "queued: waiting" in table
    assert cmcl.one("model", "list")["jobs"]["waiting"] == 1
    page = cmcl("model", "show", "scenes")
    for words in ("2 (two)", "1 waiting", f"{waiting} (waiting) queued", "image 4, text 3"):
        assert words in page
    document = cmcl.one("model", "show", "scenes")
    assert document["modalities"]["image"]["width"] == 4
    assert document["newest"]["max_drift"] == 0.1
    (newest,) = cmcl.lines("version", "list", "scenes", "--order=desc", "--limit=1")
    assert (newest["version"], newest["max_drift"]) == (2, 0.1)


def test_a_version_is_shown_completely(cmcl: Cmcl) -> None:
    assert "│ 2       │ two" in cmcl("version", "list", "scenes")
    page = cmcl("version", "show", "scenes", "2")
    for words in ("scenes@2", "certificate", "│ one", "lineage", "on 1 ranks"):
        assert words in page
    for arguments, number in (
        (("scenes", "2"), 2),
        (("scenes@2",), 2),
        (("scenes@1",), 1),
        (("scenes",), 2),
    ):
        assert cmcl.one("version", "show", *arguments)["version"] == number
    assert "version" in cmcl("version", "show", "scenes@1", "1", code=Exit.USAGE)


def test_versions_are_promoted_rolled_back_and_retired(cmcl: Cmcl) -> None:
    assert "version 1 is live (generation 3)" in cmcl("promote", "scenes@1", "--reason=birds")
    assert "scenes@VERSION" in cmcl("promote", "scenes", code=Exit.USAGE)
    assert cmcl.one("rollback", "scenes")["version"] == 2
    history = cmcl.lines("history", "scenes")
    assert [change["kind"] for change in history[2:]] == ["promoted", "rolled_back"]
    assert "birds" in cmcl("history", "scenes")
    cmcl("version", "retire", "scenes", "1", "--yes")
    assert "has no" not in cmcl("version", "list", "scenes")


def test_keys_are_created_listed_and_revoked(cmcl: Cmcl) -> None:
    shown = cmcl("whoami")
    assert "name    local" in shown
    assert "quotas of default" in shown
    assert re.search(r"models +1 of ", shown)
    assert cmcl.one("whoami")["quotas"]["quotas"]["models"]["used"] == 1
    made = cmcl("key", "create", "robot", "--scope=read,train", "--scope", "write")
    assert "not shown again" in made
    again = cmcl.one("key", "create", "other", "--scope=read")
    assert again["key"].startswith("cmcl_")
    names = {key["name"]: key for key in cmcl.lines("key", "list")}
    assert names["robot"]["scopes"] == ["read", "train", "write"]
    cmcl("key", "revoke", again["id"])
    assert again["key"] not in cmcl("key", "list")


def test_webhooks_are_added_listed_and_deleted(cmcl: Cmcl) -> None:
    made = cmcl.one("webhook", "add", "https://example.com/x", "--kind=job.failed")
    assert made["secret"].startswith("whsec_")
    listed = cmcl("webhook", "list")
    assert "https://example.com/x" in listed
    assert "whsec" not in listed
    cmcl("webhook", "delete", made["id"])
    assert "no webhooks yet; add one: cmcl webhook add" in cmcl("webhook", "list")
