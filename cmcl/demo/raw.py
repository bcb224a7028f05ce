"""The raw part of the demo: raw pairs are learned, and raw queries are sent to the endpoint."""

import csv
import itertools
import json
import math
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.table import Table

from cmcl.cli.progress import watch_with_bar
from cmcl.client import Client, CmclError, Json, Query
from cmcl.contract.api.datasets import Dataset
from cmcl.contract.modality import ModalityPair

MODEL = "demo-raw"
# By modality, the encoder that computes its features. All are declared in examples/encoders/encoders.json.
MODALITIES = {"image": "efficientnet-lite0", "text": "minilm", "location": "geoclip"}
_DATASETS = (
    ("emoji", ModalityPair(first="image", second="text"), "emoji.tar"),
    ("places", ModalityPair(first="location", second="text"), "places.csv"),
)
_QUERIES_PER_SECOND = 2.0
_LIVE_SECONDS = 120.0


@dataclass
class RawReport:
    """The prepared datasets, and the outcomes of the raw queries."""

    datasets: list[Dataset] = field(default_factory=list)
    preparing_seconds: float = 0.0
    queries: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def rejected_rows(self) -> int:
        return sum(each.rejected.rows for each in self.datasets if each.rejected)

    @property
    def rows(self) -> int:
        """Rows that were encoded: trained on, and held out."""
        return sum(
            sum(shard.rows for shard in (*each.manifest.shards, *each.manifest.evaluation_shards))
            for each in self.datasets
            if each.manifest
        )

    def document(self) -> Json:
        """The raw part of the demo's last line."""
        rate = self.rows / self.preparing_seconds if self.preparing_seconds else None
        return {
            "datasets": len(self.datasets),
            "rows": self.rows,
            "rejected_rows": self.rejected_rows,
            # Reading, checking and writing included, and the start of the encoders.
            "encode_rows_per_second": None if rate is None else round(rate, 1),
            "raw_queries": self.queries,
            "failed_raw_queries": len(self.failures),
        }


class RawQueries:
    """A thread that sends raw queries, one after another, and checks each response.

    A context manager; `start` starts the thread, once there is a query.
    """

    def __init__(
        self,
        client: Client,
        report: RawReport,
        queries_per_second: float = _QUERIES_PER_SECOND,
    ) -> None:
        self._client, self._report = client, report
        self._queries: list[Query] = []
        self._interval = 1 / queries_per_second
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def add(self, queries: Iterable[Query]) -> None:
        """Send these queries too."""
        self._queries += queries

    def start(self) -> None:
        """Start to send queries."""
        self._thread.start()

    def _run(self) -> None:
        for number in itertools.count():
            if self._stopped.wait(self._interval):
                return
            query = self._queries[number % len(self._queries)]
            self._report.queries += 1
            try:
                answer = self._client.embed(MODEL, query.modality, [query])
            except CmclError as error:
                self._report.failures.append(f"{query.modality}: {error}")
                continue
            if len(answer.vectors) != 1 or not all(map(math.isfinite, answer.vectors[0])):
                self._report.failures.append(f"{query.modality}: an answer of an unexpected form")


def learn_raw(client: Client, folder: Path, console: Console) -> RawReport:
    """Post the raw datasets one after another, and send queries from the first version on.

    Raises RawFailure if a dataset does not become a version.
    """
    report = RawReport()
    modalities = {name: {"encoder": encoder} for name, encoder in MODALITIES.items()}
    client.create_model(MODEL, {"width": 128, "modalities": modalities})
    with RawQueries(client, report) as queries:
        _learn_datasets(client, folder, report, queries, console)
        console.print(_nearest_table(client, folder))
    return report


class RawFailure(Exception):
    """A raw dataset did not become a version."""


def _learn_datasets(
    client: Client, folder: Path, report: RawReport, queries: RawQueries, console: Console
) -> None:
    unlearned = raw_queries(folder)
    for number, (name, pair, file) in enumerate(_DATASETS):
        accepted = client.add_dataset(
            MODEL, name, pair, [folder / file], evaluation_share=0.15, upload="always"
        )
        job = watch_with_bar(client, accepted.job.id, f"{name:<12} {pair!s:<13}", console)
        if job.state != "published":
            raise RawFailure(f"{name} ended as {job.state}: {job.message}")
        report.datasets.append(client.dataset(accepted.dataset.id))
        report.preparing_seconds += sum(
            event.details.get("after_seconds", 0.0)
            for event in client.events(job.id)
            if event.kind == "job.prepared"
        )
        learned = [each for each in unlearned if each.modality in pair.modalities]
        unlearned = [each for each in unlearned if each not in learned]
        _wait_until_live(client, learned[0])
        queries.add(learned)
        if number == 0:
            queries.start()


def _wait_until_live(client: Client, query: Query) -> None:
    """Wait until the version that has learned the modality of the query answers."""
    deadline = time.monotonic() + _LIVE_SECONDS
    while True:
        try:
            client.embed(MODEL, query.modality, [query])
            return
        except CmclError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _nearest_table(client: Client, folder: Path) -> Table:
    """Return a table of the nearest pictures of a few texts."""
    texts = (
        "a fruit",
        "an animal with a long neck",
        "a way to travel over water",
        "a sport with a ball",
    )
    pictures = dict(itertools.islice(_pictures(folder / "emoji.tar"), 0, None, 12))
    asked = client.embed(MODEL, "text", texts)
    candidates = [Query("image", data=data) for data in pictures.values()]
    # By the version that embedded the texts: a newer one may be live by now.
    found = client.embed(f"{MODEL}@{asked.version}", "image", candidates)
    table = Table(title="Raw queries: the nearest of some pictures to a text")
    table.add_column("text")
    table.add_column("pictures")
    for text, query in zip(texts, asked.vectors, strict=True):
        # Embeddings have length 1: the dot product of two is their cosine.
        scores = [sum(map(mul, query, vector)) for vector in found.vectors]
        best = sorted(zip(scores, pictures, strict=True), reverse=True)[:3]
        table.add_row(text, ", ".join(f"{name} {score:.2f}" for score, name in best))
    return table


def _pictures(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the names and bytes of the pictures that can be read."""
    with tarfile.open(tar) as opened:
        for member in opened:
            name, _, suffix = member.name.partition(".")
            content = opened.extractfile(member)
            if suffix == "image.png" and name != "damaged-picture" and content is not None:
                yield name, content.read()


def raw_queries(folder: Path) -> list[Query]:
    """Return a few raw items of each modality."""
    with (folder / "places.csv").open(encoding="utf-8") as file:
        places = [json.loads(row["location"]) for row in itertools.islice(csv.DictReader(file), 3)]
    pictures = itertools.islice(_pictures(folder / "emoji.tar"), 3)
    return [
        *(Query("text", text=text) for text in ("red apple", "a city in Japan", "a train")),
        *(Query("image", data=data) for _, data in pictures),
        *(Query("location", numbers=place) for place in places),
    ]
