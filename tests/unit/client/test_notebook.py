"""Pictures of what the API returns, in a notebook and from the command line."""

import os
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cmcl import Client
from cmcl.cli.errors import Exit
from cmcl.client import (
    DatasetFigures,
    Job,
    Progress,
    VersionSummary,
)
from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import Drift
from cmcl.pictures import (
    history_pictures,
    manifest_pictures,
    memory_of,
    version_pictures,
)
from tests.fakes.control_plane import ControlPlane
from tests.fakes.responses import body, response
from tests.fakes.trainer import train
from tests.unit.client.command_line import Cmcl

SVG = "{http://www.w3.org/2000/svg}"
AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
JOB = response(
    Job,
    id="job-0123456789ab",
    state="running",
    message="<script>alert(1)</script>",
    attempt=2,
    created_at=AT,
    state_changed_at=AT,
)


def headings(svg: str) -> list[str]:
    """The visible titles of the pictures in a file."""
    root = ET.fromstring(svg)
    return [each.text or "" for each in root.iter(f"{SVG}text") if each.get("font-size") == "14"]


def test_a_notebook_shows_a_version_with_its_pictures(published: Client) -> None:
    version = published.version("scenes", 2)
    html = version._repr_html_() or ""
    drawn = version_pictures(version)
    assert html.count("<svg") == len([each for each in drawn if each is not None])
    assert "scenes@2" in html
    assert "two" in html
    assert drawn.drift is not None
    assert [row[0] for row in drawn.drift.table.rows] == ["one"]


def test_pictures_have_names_instead_of_ids(published: Client) -> None:
    version = published.version("scenes", 2)
    ids = [line.dataset for line in version.lineage]
    drift = {ids[0]: Drift(since_learned=0.2, against_parent=0.1)}
    report = version.manifest.report.model_copy(update={"drift": drift})
    spec = version.manifest.spec.model_copy(update={"max_drift": 0.1})
    manifest = version.manifest.model_copy(update={"report": report, "spec": spec})
    drawn = manifest_pictures(manifest, version.evaluation_matrix, [])
    assert drawn.drift is not None
    assert "exceeded by 1 of 1" in drawn.drift.description
    for picture in drawn:
        assert picture is None or not [each for each in ids if each in picture.html()]


def test_the_memory_of_a_version_has_every_recall(published: Client) -> None:
    version = published.version("scenes", 2)
    names = {line.dataset: line.name for line in version.lineage}
    found = memory_of(version.lineage, version.evaluation_matrix)
    for row, shown in zip(version.evaluation_matrix, found.rows, strict=True):
        assert shown.version == row.version
        by_name = dict(zip(found.datasets, shown.recall, strict=True))
        assert {name: share for name, share in by_name.items() if share is not None} == {
            names[dataset]: recall.at_1 for dataset, recall in row.recall.items()
        }


def test_a_notebook_shows_a_job_and_what_its_message_says_is_text() -> None:
    html = JOB._repr_html_() or ""
    assert "job-0123456789ab" in html
    assert "<script" not in html
    assert "<svg" not in html, "it has not started"
    progress = Progress(
        phase="training",
        updates_done=5,
        updates_total=1000,
        eta_seconds=75,
        at=AT + timedelta(seconds=64),
    )
    later = {"started_at": AT + timedelta(seconds=4), "progress": progress}
    html = JOB.model_copy(update=later)._repr_html_() or ""
    for words in ("5 of 1,000", "1 min 15 s", "4.0 s", "1 min so far"):
        assert words in html


def test_a_picture_of_a_version_is_written_to_a_file(cmcl: Cmcl, tmp_path: Path) -> None:
    file = tmp_path / "version.svg"
    assert "certificate" in cmcl("version", "show", "scenes@2", "--picture", str(file))
    assert "Drift of earlier datasets" in cmcl.stderr
    assert "Drift of earlier datasets" in headings(file.read_text())
    assert cmcl.one("version", "show", "scenes@2", "--picture", str(file))["version"] == 2
    wrong = cmcl("version", "show", "scenes@2", "--picture", "version.png", code=Exit.USAGE)
    assert "ends in .svg" in wrong
    lost = cmcl("version", "show", "scenes@2", "--picture", str(tmp_path / "no" / "x.svg"), code=1)
    assert "No such file" in lost


def test_a_candidate_is_drawn_beside_its_parent(
    cmcl: Cmcl, published_plane: ControlPlane, tmp_path: Path
) -> None:
    plane, file = published_plane, tmp_path / "candidate.svg"
    cmcl("model", "gate", "scenes", "--manual-approval", "--max-drift=0.4")
    job = plane.post_dataset("three")
    train(plane.store, job, plane.tick_to(job, JobState.RUNNING).attempt)
    plane.tick_to(job, JobState.HELD)
    cmcl("job", "show", job, "--picture", str(file))
    assert "Drift of earlier datasets" in headings(file.read_text())
    with Client(os.environ["CMCL_URL"]) as client:
        html = client.candidate(job)._repr_html_() or ""
    assert "candidate for scenes@3" in html
    assert "permitted: 0.4" in html


def figures(number: int, drift: float | None, **by_dataset: dict[str, float]) -> VersionSummary:
    """A version of a model's history, which learned dataset `ds-<number>` named `set <number>`."""
    return response(
        VersionSummary,
        version=number,
        dataset=f"ds-{number}",
        dataset_name=f"set {number}",
        pair={"first": "image", "second": "text"},
        max_drift=drift,
        by_dataset=body(DatasetFigures, **by_dataset),
    )


def test_the_history_of_a_model_is_drawn_in_order_with_names() -> None:
    first = figures(1, None, recall={"ds-1": 0.5})
    second = figures(2, 0.25, recall={"ds-1": 0.375, "ds-2": 0.75, "ds-0": 0.25})
    drawn = history_pictures([second, first], 0.2, {"ds-0": "older"})
    assert drawn.forgetting is not None
    assert drawn.forgetting.table.headings[2:] == ("set 1", "set 2", "older")
    assert list(drawn.forgetting.table.rows) == [
        ("1", "set 1", "50.0", "", ""),
        ("2", "set 2", "37.5 (−12.5)", "75.0", "25.0"),
    ]
    assert drawn.drift is not None
    assert list(drawn.drift.table.rows) == [("1", "–"), ("2", "25, over the bound")]
    assert "exceeded in 1 of 1" in drawn.drift.description
    assert history_pictures([]) == (None, None, None)


def test_the_history_of_a_model_is_written_to_a_file(cmcl: Cmcl, tmp_path: Path) -> None:
    file = tmp_path / "history.svg"
    assert "two" in cmcl("version", "list", "scenes", "--picture", str(file))
    assert headings(file.read_text()) == ["Largest drift by version"]
