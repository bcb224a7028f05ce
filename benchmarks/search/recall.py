"""Recall before and after a swap: with recomputed vectors, and with an unchanged index.

One collection holds the held-out rows of all datasets, both sides. A query is one side of a row. It
is a hit if one of the ten best rows of the partner's modality has the partner's feature.

Shapes: N held-out rows, F width of the raw feature, E width of the embeddings.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from benchmarks.chain import Dataset
from benchmarks.reindex import LearnedDataset
from benchmarks.search.world import World
from cmcl.contract.model import ModelSpec
from workers.model.heads import ModalityHeads
from workers.serve.collections.index import Index, SearchQuery
from workers.serve.collections.segments import Entry

_BEST = 10
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class Swap:
    """Recall@10 at the swap from version t to t + 1, over the datasets learned by version t.

    `stale`: queries of the new version on vectors of the old one.
    """

    version: int
    seconds: float
    rows: int
    before: float
    stale: float
    after: float


@dataclass(frozen=True)
class UnchangedIndex:
    """A dataset's recall@10 at the end: on vectors of the version that learned it, and on
    recomputed ones."""

    dataset: str
    learned: float
    stale: float
    after: float


def swaps(
    learnt: Sequence[LearnedDataset], spec: ModelSpec, folder: Path
) -> tuple[list[Swap], list[UnchangedIndex]]:
    """Make each version of the stream live in turn, and measure recall."""
    datasets = [one.dataset for one in learnt]
    with World(folder, spec) as world:
        for dataset in datasets:
            _write(world, dataset)
        indexes, seconds = list[Index](), list[float]()
        for one in learnt:
            seconds.append(world.swap(one.model_state.heads))
            indexes.append(world.index)
    found = [
        _swap(number, datasets[:number], indexes[number - 1 : number + 1], seconds[number])
        for number in range(1, len(learnt))
    ]
    last = indexes[-1]
    alone = [
        UnchangedIndex(
            dataset.name,
            *(_recall(dataset, *pair) for pair in ((index, index), (index, last), (last, last))),
        )
        for dataset, index in zip(datasets[:-1], indexes[:-1], strict=True)
    ]
    return found, alone


def _write(world: World, dataset: Dataset) -> None:
    rows = dataset.held_out.rows
    sides = (
        (dataset.pair.first, rows.first_NI, rows.first_keys_N),
        (dataset.pair.second, rows.second_NJ, rows.second_keys_N),
    )
    entries = [
        Entry(f"{dataset.name}-{modality}-{row}", modality, feature_F, json.dumps({"key": key}))
        for modality, features_NF, keys_N in sides
        for row, (feature_F, key) in enumerate(
            zip(features_NF.float().numpy(), map(str, keys_N.tolist()), strict=True)
        )
    ]
    for start in range(0, len(entries), _ROWS_AT_ONCE):
        world.write(entries[start : start + _ROWS_AT_ONCE])


def _swap(
    number: int, learned: Sequence[Dataset], indexes: Sequence[Index], seconds: float
) -> Swap:
    old, new = indexes
    recalls = [
        fmean(_recall(dataset, *pair) for dataset in learned)
        for pair in ((old, old), (old, new), (new, new))
    ]
    return Swap(number + 1, seconds, new.rows, *recalls)


def _recall(dataset: Dataset, vectors: Index, queries: Index) -> float:
    """Return recall averaged over both directions. `queries`: the index whose version embeds
    them."""
    rows, pair = dataset.held_out.rows, dataset.pair
    ways = (
        (pair.first, rows.first_NI, pair.second, rows.second_keys_N),
        (pair.second, rows.second_NJ, pair.first, rows.first_keys_N),
    )
    hits = []
    for modality, features_NF, other, keys_N in ways:
        queries_NE = _embedded(queries.version.heads, modality, features_NF)
        wanted = SearchQuery(_BEST, modalities={other}, exact=True)
        for query_E, key in zip(queries_NE, keys_N.tolist(), strict=True):
            best = vectors.search(query_E, wanted).hits
            hits.append(any(json.loads(hit.payload or "{}")["key"] == str(key) for hit in best))
    return fmean(hits)


@torch.inference_mode()
def _embedded(heads: ModalityHeads, modality: str, features_NF: torch.Tensor) -> np.ndarray:
    embeddings: np.ndarray = heads.embed(modality, features_NF.float()).numpy()
    return embeddings
