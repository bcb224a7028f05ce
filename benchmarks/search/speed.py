"""Cost of indexing and searching by number of rows.

Features have a decaying spectrum like those of encoders, but no clusters: the hardest case for a
graph.

Shapes: N rows, F width of the raw feature, E width of the embeddings, Q queries.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from usearch.compiled import MetricKind
from usearch.index import search as usearch_search

from benchmarks.search.world import World
from cmcl.contract.model import ModelSpec
from workers.model.heads import ModalityHeads, initial_heads
from workers.serve.collections.index import (
    FEW_ROWS,
    GRAPH_FROM_ROWS,
    Graph,
    Index,
    Part,
    SearchQuery,
    joined,
)
from workers.serve.collections.index_builder import project
from workers.serve.collections.segments import Entry
from workers.serve.versions.loading import Float32Array

MODALITY = "image"
_ROWS_AT_ONCE = 4096
_QUERIES = 200
_BEST = 10
_NEVER = 1 << 40


@dataclass(frozen=True)
class Following:
    """Seconds until a version is searched, without graphs, and bytes of memory per row.

    `first`: initial read of all rows. `again`: after a swap, next to the old index. `graph`:
    building a graph of all rows; None if the product uses none at this size.
    """

    rows: int
    first: float
    again: float
    graph: float | None
    bytes_index: float
    bytes_graph: float | None
    bytes_grown: float


@dataclass(frozen=True)
class Searching:
    """Median milliseconds of one query with one thread. `recall`: recall@10 of the graph."""

    rows: int
    exact: float
    usearch_exact: float
    graph: float | None
    recall: float | None


def measured(
    rows: int, feature_width: int, width: int, folder: Path
) -> tuple[Following, Searching]:
    """Write `rows` rows, swap twice, build a graph, and search."""
    torch.set_num_threads(1)
    spec = ModelSpec(width=width, modalities={MODALITY: feature_width, "text": 8})
    with World(folder, spec, graph_from=_NEVER) as world:
        for start in range(0, rows, _ROWS_AT_ONCE):
            world.write(_entries(start, min(_ROWS_AT_ONCE, rows - start), feature_width))
        empty = _memory()
        first = world.swap(_heads(spec, 1))
        grown = _memory() - empty
        again = world.swap(_heads(spec, 2))
        index = world.index
    part, seconds = _with_graph(joined(index.parts))
    graph_bytes = part.graph.memory_bytes / rows if part.graph else None
    following = Following(
        *(rows, first, again, seconds, index.memory_bytes / rows, graph_bytes, grown / rows)
    )
    # With the default threshold the graph would not be used.
    searched = _searched(replace(index, parts=(part,), few=FEW_ROWS), feature_width)
    return following, searched


def _with_graph(part: Part) -> tuple[Part, float | None]:
    if len(part) < GRAPH_FROM_ROWS:
        return part, None
    graph, began = Graph(part.vectors_NE.shape[1]), time.perf_counter()
    for _ in graph.grow(part.vectors_NE):
        pass
    return replace(part, graph=graph), time.perf_counter() - began


def _searched(index: Index, feature_width: int) -> Searching:
    (part,) = index.parts
    features_QF = _features(len(part), _QUERIES, feature_width)
    queries_QE = project(index.version, MODALITY, features_QF)
    asks: dict[str, Callable[[Float32Array], object]] = {
        "exact": lambda query_E: index.search(query_E, SearchQuery(_BEST, exact=True)),
        "usearch_exact": lambda query_E: usearch_search(
            part.vectors_NE, query_E, _BEST, MetricKind.IP, exact=True, threads=1
        ),
    }
    if part.graph is not None:
        asks["graph"] = lambda query_E: index.search(query_E, SearchQuery(_BEST))
    times = _milliseconds(asks, queries_QE)
    recall = None if part.graph is None else _recall(index, queries_QE)
    return Searching(len(part), times["exact"], times["usearch_exact"], times.get("graph"), recall)


def _recall(index: Index, queries_QE: Float32Array) -> float:
    shares = []
    for query_E in queries_QE:
        true, found = (
            {hit.id for hit in index.search(query_E, SearchQuery(_BEST, exact=exact)).hits}
            for exact in (True, False)
        )
        shares.append(len(true & found) / _BEST)
    return statistics.fmean(shares)


def _milliseconds(
    asks: Mapping[str, Callable[[Float32Array], object]], queries_QE: Float32Array
) -> dict[str, float]:
    """Time all searches alternately, so that other load on the machine affects all of them
    equally."""
    times: dict[str, list[float]] = {name: [] for name in asks}
    for query_E in queries_QE:
        for name, ask in asks.items():
            began = time.perf_counter()
            ask(query_E)
            times[name].append(time.perf_counter() - began)
    return {name: 1000 * statistics.median(each) for name, each in times.items()}


def _heads(spec: ModelSpec, seed: int) -> ModalityHeads:
    generator = torch.Generator().manual_seed(seed)
    heads = initial_heads(spec)
    return heads.replaced(
        {
            modality: torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
            for modality, weight in heads.weights.items()
        }
    )


def _entries(start: int, count: int, width: int) -> list[Entry]:
    return [
        Entry(f"item-{start + row}", MODALITY, feature_F, f'{{"number":{start + row}}}')
        for row, feature_F in enumerate(_features(start, count, width))
    ]


def _features(seed: int, count: int, width: int) -> Float32Array:
    """Return features whose k-th direction has a standard deviation of 1 / √k."""
    random = np.random.default_rng((seed, count))
    scales = 1 / np.sqrt(1 + np.arange(width))
    features: Float32Array = (random.standard_normal((count, width)) * scales).astype(np.float32)
    return features


def _memory() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)
