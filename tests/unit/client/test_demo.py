"""The demo: figures that can be worked out by hand, and every query without a good answer is counted."""

import json
import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from cmcl.client import AcceptedDataset, Client, CmclError, Dataset, Embeddings, Job, Query
from cmcl.contract.version import Drift, Recall, VersionManifest
from cmcl.demo.queries import QueryLoad
from cmcl.demo.raw import RawFailure, RawQueries, RawReport, learn_raw, raw_queries
from cmcl.demo.run import DemoError, DemoOptions, run_demo, stream_figures
from tests.architecture.repository import ROOT
from tests.conftest import EXAMPLE_STREAM
from tests.fakes.responses import response

RAW = ROOT / "examples" / "raw"
AT_1 = [[0.8], [0.6, 0.5], [0.7, 0.3, 0.9]]
DRIFT = [[], [0.1], [0.05, 0.2]]


def version(index: int) -> VersionManifest:
    drift = [Drift(since_learned=value, against_parent=9.0) for value in DRIFT[index]]
    recall = [Recall(rows=9, at_1=each, at_5=each, at_10=each / 2) for each in AT_1[index]]
    measured = SimpleNamespace(
        drift={f"d-{n}": each for n, each in enumerate(drift)},
        evaluation={f"d-{n}": each for n, each in enumerate(recall)},
    )
    learned = [SimpleNamespace(dataset=f"d-{n}", name=f"data {n}") for n in range(index + 1)]
    return cast("VersionManifest", SimpleNamespace(learned=learned, report=measured))


def test_the_figures_have_a_row_for_each_version_and_a_column_for_each_dataset_so_far() -> None:
    figures = stream_figures([version(index) for index in range(3)])
    assert figures.names == ["data 0", "data 1", "data 2"]
    assert figures.at_1 == AT_1
    assert figures.at_10 == [[value / 2 for value in row] for row in AT_1]
    assert (figures.drift, figures.max_drift) == (DRIFT, 0.2)
    # Of the earlier datasets: 0.7 - 0.8 and 0.3 - 0.5.
    assert figures.summary()["bwt_recall_at_1"] == pytest.approx(-0.15, abs=1e-3)


def answer(*values: float | None, model: str = "scenes@1") -> bytes:
    return json.dumps({"model": model, "data": [{"embedding": list(values)}]}).encode()


GOOD = answer(0.6, 0.8)


@pytest.mark.parametrize(
    ("answers", "failures"),
    [
        ([GOOD, GOOD, answer(0.8, 0.6, model="scenes@2")], 0),
        # One version answers a query in one way.
        ([GOOD, answer(0.8, 0.6)], 1),
        ([GOOD, answer(0.6)], 1),
        ([GOOD, answer(0.6, math.nan)], 1),
        *(
            ([unexpected], 1)
            for unexpected in (
                *(b"<html>", b"[]", b"{}", b'{"model": "scenes@1", "data": []}', answer(None)),
                *(answer(1.0, model="scenes"), answer(), answer(math.nan, 1.0)),
            )
        ),
    ],
)
def test_every_unexpected_answer_is_a_failure(answers: list[bytes], failures: int) -> None:
    load = QueryLoad("127.0.0.1", 9, "scenes", {"image": [[1.0, 2.0]]}, rate=100)
    for each in answers:
        load._check(0, 200, each, 0.0)
    assert (load.report.sent, len(load.report.failures)) == (len(answers), failures)


def test_an_unreachable_server_is_a_failure_each_time() -> None:
    load = QueryLoad("127.0.0.1", 9, "scenes", {"image": [[1.0, 2.0]]}, rate=100)
    load.start()
    deadline = time.monotonic() + 60
    while load.report.sent < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    report = load.stop()
    assert report.sent == len(report.failures) >= 2


class FakeClient:
    """A control plane whose jobs end in these states, and an endpoint that answers with `answer`."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.posted: list[str] = []
        self.seen: dict[str, Query] = {}
        self.answer: Callable[[Query], list[list[float]]] = lambda _: [[0.6, 0.8]]
        # Requests that fail, because no version is live yet.
        self.outage = 2

    def create_model(self, *_: object) -> None:
        """A model."""

    def add_dataset(self, _model: str, name: str, *_: object, **_options: Any) -> AcceptedDataset:
        self.posted.append(name)
        return response(AcceptedDataset, dataset=self.dataset(name), job=self._job("queued"))

    def _job(self, state: str) -> Job:
        return response(Job, id="job-1", state=state, message="no disk")

    def watch(self, _job: str, on_change: Callable[[Job], None], **_: object) -> Job:
        ended = self._job(self.states.pop(0))
        on_change(ended)
        return ended

    def events(self, _job: str) -> list[Any]:
        return []

    def dataset(self, name: str) -> Dataset:
        rejected = {"rows": 1, "first": []}
        pair = {"first": "image", "second": "text"}
        return response(Dataset, name=name, pair=pair, rejected=rejected)

    def embed(self, _model: str, modality: str, inputs: list[Any]) -> Embeddings:
        if self.outage:
            self.outage -= 1
            raise CmclError("no version yet", 404)
        if len(inputs) == 1 and isinstance(inputs[0], Query):
            self.seen[modality] = inputs[0]
            return Embeddings(self.answer(inputs[0]), 1)
        # The later a picture comes in the archive, the nearer it is to each text.
        shares = [number / (len(inputs) - 1) for number in range(len(inputs))]
        is_text = isinstance(inputs[0], str)
        vectors = [[1.0, 0.0] if is_text else [share, math.sqrt(1 - share**2)] for share in shares]
        return Embeddings(vectors, 1)


def test_raw_datasets_become_versions_and_their_nearest_pictures_come_first() -> None:
    fake = FakeClient("published", "published")
    console = Console(width=160, record=True, quiet=True)
    with console.capture():
        report = learn_raw(cast("Client", fake), RAW, console)
    assert fake.posted == ["emoji", "places"]
    assert fake.outage == 0, "queries begin once the first version is live"
    document = report.document()
    assert (document["datasets"], document["rejected_rows"]) == (2, 2)
    assert document["failed_raw_queries"] == 0
    assert document["encode_rows_per_second"] is None, "no time was reported"


@pytest.mark.parametrize(("states", "posted"), [(["failed"], 1), (["published", "rejected"], 2)])
def test_a_raw_dataset_without_a_version_ends_the_demo(states: list[str], posted: int) -> None:
    fake = FakeClient(*states)
    with pytest.raises(RawFailure, match=f"ended as {states[-1]}: no disk"):
        learn_raw(cast("Client", fake), RAW, Console(quiet=True))
    assert len(fake.posted) == posted


def refuse(query: Query) -> list[list[float]]:
    raise CmclError(f"the encoder of {query.modality} does not answer", 503)


@pytest.mark.parametrize(
    ("answered", "is_good"),
    [
        (lambda _: [[1.0, 0.0]], True),
        (refuse, False),
        (lambda _: [], False),
        (lambda _: [[1.0], [1.0]], False),
        (lambda _: [[math.nan, 1.0]], False),
    ],
)
def test_every_raw_query_without_a_good_answer_is_a_failure(
    answered: Callable[[Query], list[list[float]]], is_good: bool
) -> None:
    fake, report = FakeClient(), RawReport()
    fake.answer, fake.outage = answered, 0
    with RawQueries(cast("Client", fake), report, queries_per_second=1000) as queries:
        queries.add(raw_queries(RAW))
        queries.start()
        deadline = time.monotonic() + 60
        while report.queries < 9 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert report.queries >= 9
    assert len(report.failures) == (0 if is_good else report.queries)
    assert (fake.seen["image"].data or b"").startswith(b"\x89PNG")
    assert fake.seen["text"].text
    assert len(fake.seen["location"].numbers or ()) == 2


def test_the_demo_empties_only_its_own_folder(tmp_path: Any) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("dear")
    with pytest.raises(DemoError, match="was not made by an earlier demo"):
        run_demo(DemoOptions(EXAMPLE_STREAM, RAW, tmp_path), Console(quiet=True))
    assert letter.read_text() == "dear"
