"""What following and searching cost, by the number of rows.

Features have a spectrum that falls, as encoders' do: a graph finds the neighbours of rows that fill
all directions alike far less well, and no encoder gives such.

Shapes: N rows, F width of the raw feature, E width of the embeddings, Q queries.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from usearch.compiled import MetricKind
from usearch.index import search as usearch_search

from benchmarks.search.world import World
from workers.contract.model import ModelSpec
from workers.model.heads import ModalityHeads
from workers.serve.search.index.draft import project
from workers.serve.search.index.index import Index, Wanted
from workers.serve.search.stored.segments import Entry
from workers.serve.versions.loading import Float32Array

MODALITY = "image"
_ROWS_AT_ONCE = 4096
_QUERIES = 200
_BEST = 10


@dataclass(frozen=True)
class Following:
    """Seconds until a version answers, and bytes of memory for each row (as the system counts).

    `first`: everything read for the first time. `again`: after a swap, beside the old index. Each
    with the graph where there is one; `graph` is its part of `again`, estimated by building it once
    more.
    """

    rows: int
    first: float
    again: float
    graph: float
    bytes_first: float
    bytes_again: float


@dataclass(frozen=True)
class Searching:
    """Milliseconds of one query, with one thread: median of many. `recall`: of the graph, at 10."""

    rows: int
    exact: float
    usearch_exact: float
    graph: float | None
    recall: float | None


def measured(
    rows: int, feature_width: int, width: int, folder: Path
) -> tuple[Following, Searching]:
    """Write that many rows, swap twice, search."""
    torch.set_num_threads(1)
    spec = ModelSpec(width=width, modalities={MODALITY: feature_width, "text": 8})
    with World(folder, spec) as world:
        for start in range(0, rows, _ROWS_AT_ONCE):
            world.write(_entries(start, min(_ROWS_AT_ONCE, rows - start), feature_width))
        following = _followed(world, spec, rows)
        index = world.index
    return following, _searched(index, rows, feature_width)


def _followed(world: World, spec: ModelSpec, rows: int) -> Following:
    empty = _memory()
    first = world.swap(_heads(spec, 1))
    once = _memory()
    again = world.swap(_heads(spec, 2))
    twice = _memory()
    graph = _graph_seconds(world.index)
    return Following(rows, first, again, graph, (once - empty) / rows, (twice - once) / rows)


def _searched(index: Index, rows: int, feature_width: int) -> Searching:
    features_QF = _features(rows, _QUERIES, feature_width)
    queries_QE = project(index.version, MODALITY, features_QF)
    vectors_NE = np.concatenate([part.vectors_NE for part in index.parts])
    exact = _milliseconds(
        lambda query_E: index.search(query_E, Wanted(_BEST, exact=True)), queries_QE
    )
    peer = _milliseconds(
        lambda query_E: usearch_search(
            vectors_NE, query_E, _BEST, MetricKind.IP, exact=True, threads=1
        ),
        queries_QE,
    )
    if all(part.graph is None for part in index.parts):
        return Searching(rows, exact, peer, None, None)
    graph = _milliseconds(lambda query_E: index.search(query_E, Wanted(_BEST)), queries_QE)
    return Searching(rows, exact, peer, graph, _recall(index, queries_QE))


def _recall(index: Index, queries_QE: Float32Array) -> float:
    shares = []
    for query_E in queries_QE:
        true, found = (
            {hit.id for hit in index.search(query_E, Wanted(_BEST, exact=exact)).hits}
            for exact in (True, False)
        )
        shares.append(len(true & found) / _BEST)
    return statistics.fmean(shares)


def _milliseconds(ask: Callable[[Float32Array], object], queries_QE: Float32Array) -> float:
    ask(queries_QE[0])
    times = []
    for query_E in queries_QE:
        began = time.perf_counter()
        ask(query_E)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def _graph_seconds(index: Index) -> float:
    from workers.serve.search.index.graph import Graph

    began = time.perf_counter()
    for part in index.parts:
        if part.graph is not None:
            for _ in Graph(part.vectors_NE.shape[1]).grow(part.vectors_NE):
                pass
    return time.perf_counter() - began


def _heads(spec: ModelSpec, seed: int) -> ModalityHeads:
    generator = torch.Generator().manual_seed(seed)
    return ModalityHeads(
        {
            modality: torch.randn(spec.width, width + 1, generator=generator) / width**0.5
            for modality, width in spec.modalities.items()
        }
    )


def _entries(start: int, count: int, width: int) -> list[Entry]:
    return [
        Entry(f"item-{start + row}", MODALITY, feature_F, f'{{"number":{start + row}}}')
        for row, feature_F in enumerate(_features(start, count, width))
    ]


def _features(seed: int, count: int, width: int) -> Float32Array:
    """Standard deviations of the directions fall like 1 / √k."""
    random = np.random.default_rng((seed, count))
    scales = 1 / np.sqrt(1 + np.arange(width))
    features: Float32Array = (random.standard_normal((count, width)) * scales).astype(np.float32)
    return features


def _memory() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)
