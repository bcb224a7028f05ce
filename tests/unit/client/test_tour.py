"""The notebook examples/tour.ipynb runs from its first to its last cell against a control plane."""

import ast
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.api.jobs import JobState
from cmcl.contract.version import HeadCapacity, Recall, VersionManifest
from tests.architecture.repository import ROOT
from tests.fakes.control_plane import ControlPlane
from tests.fakes.served_app import served
from tests.fakes.trainer import train

NOTEBOOK = ROOT / "examples" / "tour.ipynb"


def code_cells() -> list[str]:
    document = json.loads(NOTEBOOK.read_text())
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells), "outputs would go stale"
    return ["".join(cell["source"]) for cell in cells]


def run_cell(source: str, names: dict[str, Any]) -> object:
    """Run a cell and return the value of its last expression, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, str(NOTEBOOK), "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


@contextmanager
def training(plane: ControlPlane) -> Iterator[None]:
    """Prepare, train and publish what is posted, in a thread, until the block ends."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.01):
            plane.tick()
            for item in plane.client.get("/v1/jobs", params={"state": "running"}).json()["items"]:
                job = plane.job(item["id"])
                if job.state == JobState.RUNNING and not plane.has_candidate(job):
                    train(plane.store, job.id, job.attempt, changes=measured(plane, job))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def measured(plane: ControlPlane, job: Any) -> dict[str, object]:
    """The report of a candidate with recall and capacity, which the fake trainer does not measure."""
    plain: VersionManifest = train(plane.store, job.id, job.attempt, write=False)
    count = len(plain.learned)
    evaluation = {
        line.dataset: Recall(rows=10, at_1=0.8 - 0.01 * (count - index), at_5=0.9, at_10=0.9)
        for index, line in enumerate(plain.learned)
    }
    head = HeadCapacity(
        free_share=0.9**count,
        input_directions=9,
        input_width=99,
        output_directions=9,
        output_width=99,
    )
    modalities = {each for line in plain.learned for each in line.pair.modalities}
    report = plain.report.model_copy(
        update={"evaluation": evaluation, "capacity": dict.fromkeys(sorted(modalities), head)}
    )
    return {"report": report}


def test_every_cell_of_the_tour_runs_and_the_pictures_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stream").symlink_to(ROOT / "examples" / "stream")
    monkeypatch.chdir(tmp_path)
    prefix = (ROOT / "examples").as_uri()
    plane = ControlPlane(tmp_path / "plane", allowed_prefixes=(prefix,))
    names: dict[str, Any] = {}
    with served(plane.app) as url, training(plane):
        monkeypatch.setenv("CMCL_URL", url)
        shown = [run_cell(source, names) for source in code_cells()]
    plane.close()
    html = ["" if value is None else getattr(value, "_repr_html_", str)() for value in shown]
    assert [page.count("<svg") for page in html if "<svg" in page] == [1, 1, 4, 1, 1]
    assert "published" in html[2]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".svg"] == []
