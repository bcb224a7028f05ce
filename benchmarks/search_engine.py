"""Search in a large collection: latency, recall and memory, and a swap to another version under queries.

    python -m benchmarks.search_engine --rows 1000000 --json

Rows are audio features of the example stream (width 768), tiled with noise of their covariance, and two versions of a
linear head to 256. Queries *near* are held-out features, *far* ones have a best cosine as a query of another modality
has. Beside the product, in the same process: the bare engine on the same column, all rows compared by a matrix product,
and with `--graph` one of usearch (`pip install usearch`), which takes minutes to build.

Shapes: N rows, F width of the features, E of the vectors, Q queries, K neighbours.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    listed,
    log_progress,
    publish,
    table,
)
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import LivePointer
from cmcl.storage.local import LocalStore
from workers.model.heads import ModalityHeads
from workers.nullspace.conditioning import Conditioning
from workers.serve.collections.columns import PARTITIONS, ColumnBuilder, Versions
from workers.serve.collections.follower import CollectionsFollower
from workers.serve.collections.registry import Registry
from workers.serve.collections.searching import Searched, SearchQuery
from workers.serve.collections.table import ITEMS, CollectionSpec, Row
from workers.serve.versions.live import LiveVersions
from workers.serve.versions.loading import Float32Array, LoadedHeads, ServedVersion

STREAM = Path("examples/stream/04_digits_va")
MODEL, NAME = "measured", "items"
WIDTH, QUERIES, TOP, WRITTEN_AT_ONCE = 256, 300, 10, 4096
SPEC = ModelSpec(width=WIDTH, modalities={"audio": 768, "image": 768}, lift=0)
CREATED = datetime(2026, 12, 1, tzinfo=UTC)


class Rows:
    """Features of items, as many as are wanted, and queries.

    `base_NF`: features that are tiled with noise. `held_NF`: those of queries. `spec`: of the model, whose first modality
    the items have; all of its modalities are as wide.
    """

    def __init__(self, base_NF: Float32Array, held_NF: Float32Array, spec: ModelSpec) -> None:
        self._random = np.random.default_rng(0)
        self.spec, self.modality = spec, next(iter(spec.modalities))
        self._base, self._held = base_NF, held_NF
        self.mean_F = base_NF.mean(0)
        values, vectors = np.linalg.eigh(np.cov((base_NF - self.mean_F).T))
        self._noise_FF = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        top = vectors[:, ::-1][:, :WIDTH]
        self.weight_EF = (top / np.sqrt(values[::-1][:WIDTH] + 0.02 * values[-1])).T

    def stored(self, count: int) -> Float32Array:
        """Return features of so many new rows."""
        return self._tiled(self._base, count)

    def queries(self, version: ServedVersion) -> dict[str, Float32Array]:
        """Return the embeddings of queries, near and far."""
        near_QE = embedded(version, self._tiled(self._held, QUERIES))
        noise_QE = self._random.standard_normal(near_QE.shape).astype(np.float32)
        far_QE = near_QE + 1.2 * _unit(noise_QE)
        return {"near": near_QE, "far": _unit(far_QE)}

    @classmethod
    def from_stream(cls) -> Self:
        """Audio features of the example stream."""
        base_NF, held_NF = (
            _features(Path(f"{STREAM}.{part}.parquet")) for part in ("train", "test")
        )
        return cls(base_NF, held_NF, SPEC)

    def heads(self, number: int) -> ModalityHeads:
        """Return heads of a version whose scores differ from those of the others by a few hundredths."""
        random = np.random.default_rng(number)
        turned = 0.15 * self.weight_EF.std() * random.standard_normal(self.weight_EF.shape)
        weight_EF = self.weight_EF + (turned if number > 1 else 0)
        bias_E1 = -(weight_EF @ self.mean_F)[:, None]
        weight_EI = torch.from_numpy(np.hstack([weight_EF, bias_E1])).float()
        width, names = len(self.mean_F), self.spec.modalities
        # A file of tensors must not have one of them twice.
        plain = {name: Conditioning(torch.zeros(width), torch.eye(width)) for name in names}
        return ModalityHeads({name: weight_EI.clone() for name in names}, plain)

    def version(self, number: int) -> ServedVersion:
        """Return a version with these heads."""
        pairs = frozenset({ModalityPair(first=self.modality, second="image")})
        heads = LoadedHeads(self.heads(number))
        return ServedVersion(MODEL, number, self.spec, heads, CREATED, pairs, (number,))

    def _tiled(self, source_NF: Float32Array, count: int) -> Float32Array:
        rows_NF = source_NF[self._random.integers(len(source_NF), size=count)]
        rows_NF = rows_NF + 0.5 * self._random.standard_normal(rows_NF.shape) @ self._noise_FF
        return _unit(rows_NF)


def _features(path: Path) -> Float32Array:
    lists = pq.read_table(path).column("feature_b").combine_chunks()
    rows_NF = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return _unit(rows_NF.reshape(len(lists), -1))


def _unit(rows_NF: np.ndarray) -> Float32Array:
    made_NF: Float32Array = rows_NF / np.linalg.norm(rows_NF, axis=1, keepdims=True)
    return made_NF.astype(np.float32)


def embedded(version: ServedVersion, features_BF: Float32Array) -> Float32Array:
    """Return unit embeddings (B x E), which are the same for all modalities."""
    modality = next(iter(version.spec.modalities))
    made: Float32Array = version.heads.embed(modality, torch.from_numpy(features_BF)).numpy()
    return made


class Replica:
    """The part of a replica that has collections."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        self._rows = rows
        self.live = LiveVersions()
        self.registry = Registry(LocalStore(folder))
        self.follower = CollectionsFollower(
            self.registry, self.live, lambda _, number: rows.version(number), str(os.getpid()), 0.1
        )

    def swap(self, number: int) -> ServedVersion:
        """Make a version live."""
        version, pointer = (
            self._rows.version(number),
            LivePointer(generation=number, version=number),
        )
        self.live.update(MODEL, pointer)
        self.live.swap(MODEL, pointer, version)
        return version

    def searched(self, *, settled: bool = False) -> Searched:
        """Do all work that is due, or all that there is, and return what is searched then."""
        self.follower.poll()
        while self.follower.work() or (settled and self._is_untidy()):
            self.follower.poll()
        self.follower.poll()
        found = self.follower.snapshots()[NAME]
        assert found.searched is not None, found.problem
        return found.searched

    def _is_untidy(self) -> bool:
        state = self.follower.snapshots()[NAME].state
        return ColumnBuilder(state.table, str(os.getpid())).is_untidy(state)


def fill(replica: Replica, rows: Rows, count: int, options: argparse.Namespace) -> None:
    """Create the collection and write so many rows, each with two numbers in its payload."""
    spec = CollectionSpec(
        name=NAME,
        model=MODEL,
        owner=None,
        feature_type="float16",
        vector_type=options.vector_type,
        dimensions=options.dimensions,
        text_fields=(),
    )
    state = replica.registry.create(spec)
    if state.rows == count:
        return  # Of an earlier run in the same folder.
    table_ = state.table
    versions = Versions(spec, replica.live, lambda _, number: rows.version(number))
    for start in range(0, count, WRITTEN_AT_ONCE):
        features_BF = rows.stored(min(WRITTEN_AT_ONCE, count - start))
        table_.write(
            [
                Row(
                    f"r{at}",
                    rows.modality,
                    row_F,
                    json.dumps({"hundredth": at % 100, "rare": at % 10_000}),
                )
                for at, row_F in enumerate(features_BF, start)
            ],
            versions.embed,
        )
        if start // WRITTEN_AT_ONCE % 16 == 0:
            log_progress(f"{start + len(features_BF):,} rows written")
            replica.searched()


def timed(do: Callable[[Float32Array], object], queries_QE: Float32Array) -> list[float]:
    """Return the milliseconds of each query."""
    for query_E in queries_QE[:10]:
        do(query_E)
    found = []
    for query_E in queries_QE:
        start = time.perf_counter()
        do(query_E)
        found.append(1000 * (time.perf_counter() - start))
    return found


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds."""
    return {f"p{at}_ms": round(float(np.percentile(milliseconds, at)), 2) for at in (50, 95, 99)}


def stored_vectors(searched: Searched) -> tuple[list[str], Float32Array]:
    """Return the ids of all items, and their embeddings (N x E) from their features."""
    parts, ids = list[Float32Array](), list[str]()
    for batch in searched.state.dataset.to_batches(columns=["id", "feature"], filter=ITEMS):
        numbers = batch.column("feature").flatten().to_numpy().astype(np.float32)
        parts.append(embedded(searched.version, numbers.reshape(batch.num_rows, -1)))
        ids += batch.column("id").to_pylist()
    return ids, np.concatenate(parts)


def bare_engine(searched: Searched) -> Callable[[Float32Array], list[str]]:
    """Return a search of the same column by Lance alone, which reads ids and nothing else."""
    dataset, column = searched.state.dataset, searched.column

    def search(query_E: Float32Array) -> list[str]:
        nearest = {
            "column": column,
            "q": query_E,
            "k": TOP,
            "metric": "cosine",
            "refine_factor": 4,
            "minimum_nprobes": PARTITIONS,
        }
        found = dataset.scanner(columns=["id", "_distance"], nearest=nearest).to_table()
        ids: list[str] = found["id"].to_pylist()
        return ids

    return search


def measured(
    searched: Searched, queries: dict[str, Float32Array], *, with_graph: bool
) -> dict[str, Any]:
    """Return latency and recall, of all rows and under filters, beside the bare engine and a product."""
    ids, vectors_NE = stored_vectors(searched)
    numbers_N = np.array([int(each[1:]) for each in ids])
    results: dict[str, Any] = {}
    filters = {
        "all": (None, np.ones(len(ids), bool)),
        "1 %": ({"field": "hundredth", "equals": 7}, numbers_N % 100 == 7),
        "0.01 %": ({"field": "rare", "equals": 7}, numbers_N % 10_000 == 7),
    }
    for kind, queries_QE in queries.items():
        for share, (document, passes_N) in filters.items():
            filter_ = None if document is None else searched.filter_sql(document)

            def ask(query_E: Float32Array, filter_: Any = filter_) -> list[str]:
                wanted = SearchQuery(TOP, query_E, filter=filter_)
                return [hit.id for hit in searched.search(wanted).hits]

            places_P = np.flatnonzero(passes_N)
            best_QK = places_P[
                np.argsort(-(queries_QE @ vectors_NE[places_P].T), axis=1, kind="stable")[:, :TOP]
            ]
            found = [
                len({ids[at] for at in best_K} & set(ask(query_E))) / len(best_K)
                for query_E, best_K in zip(queries_QE, best_QK, strict=True)
                if len(best_K)
            ]
            results[f"{kind}, {share}"] = {
                **percentiles(timed(ask, queries_QE)),
                "recall_at_10": round(float(np.mean(found)), 4),
            }
            log_progress(f"{kind}, {share}: {results[f'{kind}, {share}']}")
    near_QE = queries["near"]
    if not searched.are_compressed:
        results["bare engine"] = percentiles(timed(bare_engine(searched), near_QE))
    results["product of all rows"] = percentiles(
        timed(lambda query_E: np.argpartition(-(vectors_NE @ query_E), TOP), near_QE[:50])
    )
    if with_graph:
        from usearch.index import Index

        log_progress("building the graph of usearch")
        index, start = Index(ndim=WIDTH, metric="cos", dtype="f32"), time.perf_counter()
        index.add(np.arange(len(vectors_NE)), vectors_NE)
        seconds = time.perf_counter() - start
        best_QK = np.argsort(-(near_QE @ vectors_NE.T), axis=1)[:, :TOP]
        found_QK = index.search(near_QE, TOP).keys
        recall = np.mean([len({*a} & {*b}) / TOP for a, b in zip(best_QK, found_QK, strict=True)])
        results["usearch"] = {
            **percentiles(timed(lambda query_E: index.search(query_E, TOP), near_QE)),
            "recall_at_10": round(float(recall), 4),
            "built_s": round(seconds, 1),
            "memory_mib": index.memory_usage >> 20,
        }
    return results


def serve(folder: Path, queries_QE: Float32Array, answer: Any) -> None:
    """Search in another process; return its memory before and after, in MiB."""
    torch.set_num_threads(1)
    rows, process = Rows.from_stream(), psutil.Process()
    before = process.memory_info().rss >> 20
    replica = Replica(folder, rows)
    replica.swap(1)
    searched = replica.searched()
    timed(lambda query_E: searched.search(SearchQuery(TOP, query_E)), queries_QE)
    memory = process.memory_full_info()
    answer.put({"imports_mib": before, "rss_mib": memory.rss >> 20, "uss_mib": memory.uss >> 20})


def swapped(replica: Replica, queries_QE: Float32Array) -> dict[str, Any]:
    """Swap to version 2 while queries come; return its seconds, and the latency of queries before and during it."""
    replica.follower.start()
    replica.follower.wait_loaded(600)
    steady = timed(lambda query_E: _ask(replica, query_E), queries_QE)
    over, during = threading.Event(), list[float]()

    def ask_on() -> None:
        while not over.is_set():
            during.extend(timed(lambda query_E: _ask(replica, query_E), queries_QE[:20]))

    asking = threading.Thread(target=ask_on)
    asking.start()
    start = time.perf_counter()
    replica.swap(2)
    while (found := replica.follower.snapshots()[NAME]).searched is None or (
        found.searched.version.number != 2
    ):
        assert found.problem is None, found.problem
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    over.set()
    asking.join()
    return {
        "seconds": round(seconds, 1),
        "steady": percentiles(steady),
        "during": percentiles(during),
    }


def _ask(replica: Replica, query_E: Float32Array) -> None:
    searched = replica.follower.snapshots()[NAME].searched
    assert searched is not None
    assert len(searched.search(SearchQuery(TOP, query_E)).hits) == TOP


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write page and document. Return the exit status."""
    parser = OneLineParser(prog="python -m benchmarks.search_engine", description=__doc__)
    parser.add_argument("--rows", type=count, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="for the tables, which are kept; by default a temporary one"
    )
    parser.add_argument("--vector-type", choices=("float32", "float16", "bit"), default="float32")
    parser.add_argument("--dimensions", type=count, help="of the vectors that are stored")
    parser.add_argument("--graph", action="store_true", help="measure a graph of usearch as well")
    add_out(parser)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="cmcl-search-"))
    torch.set_num_threads(1)
    try:
        document = _measure(folder, options)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    publish(options, "search-engine", _page(document), document)
    return 0


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    count = options.rows
    rows = Rows.from_stream()
    replica = Replica(folder, rows)
    version = replica.swap(1)
    start = time.perf_counter()
    fill(replica, rows, count, options)
    written = time.perf_counter() - start
    start = time.perf_counter()
    searched = replica.searched(settled=True)
    indexed = time.perf_counter() - start
    log_progress(f"written in {written:.0f} s, indexed in {indexed:.0f} s")
    queries = rows.queries(version)
    document: dict[str, Any] = {
        "rows": count,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "written_s": round(written),
        "indexed_s": round(indexed, 1),
        "stored_mib": sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        >> 20,
    }
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    child = context.Process(target=serve, args=(folder, queries["near"], answer))
    child.start()
    document["memory"] = answer.get(timeout=600)
    child.join()
    document["queries"] = measured(searched, queries, with_graph=options.graph)
    document["swap"] = swapped(replica, queries["near"])
    return document


def _page(document: dict[str, Any]) -> str:
    head = ["query", "p50, ms", "p95, ms", "p99, ms", "recall@10"]
    lines = [
        [name, each["p50_ms"], each["p95_ms"], each["p99_ms"], each.get("recall_at_10", "")]
        for name, each in document["queries"].items()
    ]
    facts = {name: value for name, value in document.items() if name != "queries"}
    return f"# Search in a large collection\n\n{table(head, lines)}\n\n{listed(facts)}\n"


if __name__ == "__main__":
    sys.exit(main())
