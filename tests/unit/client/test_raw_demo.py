"""The raw part of the demo: datasets become versions, and every raw query without a good answer is counted."""

import io
import math
import tarfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from cmcl.client import (
    AcceptedDataset,
    Client,
    CmclError,
    Dataset,
    Embeddings,
    Job,
    Query,
    StreamedEvent,
)
from cmcl.demo.raw import RawFailure, RawQueries, RawReport, learn_raw, raw_queries
from tests.architecture.repository import ROOT
from tests.fakes.responses import response

RAW = ROOT / "examples" / "raw"
AT = datetime(2026, 11, 24, tzinfo=UTC)
DIGEST = "0" * 64
# Rows to train on, held-out rows, and rows that are left out.
EMOJI, PLACES = (480, 82, 2), (270, 50, 0)


def shard(rows: int) -> dict[str, object]:
    return {"uri": "file:///a", "sha256": DIGEST, "bytes": 1, "rows": rows}


def dataset(name: str, rows: int, held_out: int, rejected: int) -> Dataset:
    pair = {"first": "image", "second": "text"}
    about_row = {"file": "upload:up-1", "row": 5, "place": "damaged.png"}
    row = {"id": "damaged-picture", **about_row, "reason": "it is cut off"}
    left_out = {"rows": rejected, "first": [row]} if rejected else None
    files = {"shards": [shard(rows)], "evaluation_shards": [shard(held_out)]}
    manifest = {"dataset": name, "model": "demo-raw", "name": name, "pair": pair, **files}
    about: dict[str, Any] = {"id": name, "model": "demo-raw", "name": name, "pair": pair}
    return response(Dataset, **about, rejected=left_out, manifest=manifest)


class FakeClient:
    """Learns each dataset at once, and answers each query with `answer`; `states`: of the jobs, in order."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)
        self.models: list[str] = []
        self.posted: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.nearest_in: list[str] = []
        self.answer: Callable[[Query], list[list[float]]] = lambda _: [[0.6, 0.8]]
        self.outage = 0

    def create_model(self, name: str, spec: dict[str, Any]) -> None:
        self.models.append(name)
        assert all(value["encoder"] for value in spec["modalities"].values())

    def add_dataset(
        self, _model: str, name: str, _pair: object, shards: list[Path], **options: Any
    ) -> AcceptedDataset:
        assert [path.exists() for path in shards] == [True]
        self.posted.append(name)
        self.options.append(options)
        return response(AcceptedDataset, dataset=self.dataset(name), job=self._job())

    def _job(self, state: str = "queued", **fields: object) -> Job:
        return response(Job, id="job-1", state=state, **fields)

    def watch(self, _job: str, on_change: Callable[[Job], None], timeout: float) -> Job:
        assert timeout == float("inf")
        state = self.states.pop(0)
        ended = self._job(state, message="no disk")
        on_change(ended)
        return ended

    def events(self, job: str) -> list[StreamedEvent]:
        """Each took ten seconds until its rows were prepared, and others until it was learned."""
        kinds = {"job.preparing": 1.0, "job.prepared": 10.0, "job.published": 5.0}
        return [
            StreamedEvent(id=1, kind=kind, job=job, details={"after_seconds": seconds})
            for kind, seconds in kinds.items()
        ]

    def dataset(self, name: str) -> Dataset:
        return dataset(name, *(EMOJI if name == "emoji" else PLACES))

    def embed(
        self, model: str, modality: str, inputs: Sequence[str] | Sequence[Query]
    ) -> Embeddings:
        if self.outage:
            self.outage -= 1
            raise CmclError("no version yet", 404)
        if modality == "image" and len(inputs) > 1:
            self.nearest_in.append(model)
            shares = [number / (len(inputs) - 1) for number in range(len(inputs))]
            return Embeddings([[share, math.sqrt(1 - share**2)] for share in shares], 1)
        if isinstance(inputs[0], str):
            return Embeddings([[1.0, 0.0] for _ in inputs], 1)
        (query,) = (each for each in inputs if isinstance(each, Query))
        assert query.modality == modality
        return Embeddings(self.answer(query), 1)


def learned(fake: FakeClient) -> tuple[RawReport, str]:
    screen = io.StringIO()
    console = Console(file=screen, width=120)
    return learn_raw(cast("Client", fake), RAW, console), screen.getvalue()


def test_the_document_counts_rows_of_all_datasets() -> None:
    fake = FakeClient("published", "published")
    report, _ = learned(fake)
    document = report.document()
    assert fake.models == ["demo-raw"]
    assert fake.posted == ["emoji", "places"]
    assert {each["upload"] for each in fake.options} == {"always"}
    assert document["datasets"] == 2
    assert (document["rows"], document["rejected_rows"]) == (882, 2)
    assert document["encode_rows_per_second"] == 44.1, "882 rows in 20 seconds"
    assert document["failed_raw_queries"] == 0


def test_the_nearest_pictures_of_a_text_come_first() -> None:
    """The fake's pictures are the nearer to each text, the later they come in the archive."""
    fake = FakeClient("published", "published")
    _, shown = learned(fake)
    with tarfile.open(RAW / "emoji.tar") as archive:
        pictures = [name for name in archive.getnames() if name.endswith(".image.png")]
    names = [name.partition(".")[0] for name in pictures]
    last, before = [name for name in names if name != "damaged-picture"][::12][-1:-3:-1]
    (line,) = (line for line in shown.splitlines() if "a fruit" in line)
    assert f"{last} 1.00, {before} 0." in line
    assert fake.nearest_in == ["demo-raw@1"], "by the version that embedded the texts"


def test_a_report_without_datasets_has_no_rate() -> None:
    assert RawReport().document()["encode_rows_per_second"] is None


@pytest.mark.parametrize(("states", "posted"), [(["failed"], 1), (["published", "rejected"], 2)])
def test_a_dataset_without_a_version_ends_the_demo(states: list[str], posted: int) -> None:
    fake = FakeClient(*states)
    with pytest.raises(RawFailure, match=f"ended as {states[-1]}: no disk"):
        learned(fake)
    assert len(fake.posted) == posted


def test_queries_begin_once_the_first_version_is_live() -> None:
    fake = FakeClient("published", "published")
    fake.outage = 2
    report, _ = learned(fake)
    assert fake.outage == 0
    assert report.failures == []


def queried(answer: Callable[[Query], list[list[float]]], least: int) -> RawReport:
    """Query until that many queries were sent."""
    fake, report = FakeClient(), RawReport()
    fake.answer = answer
    with RawQueries(cast("Client", fake), report, queries_per_second=1000) as queries:
        queries.add(raw_queries(RAW))
        queries.start()
        deadline = time.monotonic() + 60
        while report.queries < least and time.monotonic() < deadline:
            time.sleep(0.005)
    return report


def test_every_modality_is_queried_with_raw_items() -> None:
    seen: dict[str, Query] = {}

    def answer(query: Query) -> list[list[float]]:
        seen[query.modality] = query
        return [[1.0, 0.0]]

    report = queried(answer, least=9)
    assert report.queries >= 9
    assert report.failures == []
    assert (seen["image"].data or b"").startswith(b"\x89PNG")
    assert seen["text"].text
    assert len(seen["location"].numbers or ()) == 2


def refuse(query: Query) -> list[list[float]]:
    raise CmclError(f"the encoder of {query.modality} does not answer", 503)


@pytest.mark.parametrize(
    "answer", [refuse, lambda _: [], lambda _: [[1.0], [1.0]], lambda _: [[math.nan, 1.0]]]
)
def test_every_query_without_a_good_answer_is_a_failure(
    answer: Callable[[Query], list[list[float]]],
) -> None:
    report = queried(answer, least=4)
    assert report.queries == len(report.failures) >= 4
    assert report.document()["failed_raw_queries"] == len(report.failures)


def test_queries_that_were_never_started_end_at_once() -> None:
    report = RawReport()
    with RawQueries(cast("Client", FakeClient()), report):
        pass
    assert report.queries == 0
