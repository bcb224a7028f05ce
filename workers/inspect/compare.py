"""Whether vectors stored by one version still meet queries of another as they did.

For every dataset that both versions have learned: what moments predict, and what held-out rows show.
Shapes: N rows, E width of the embeddings.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.version import LearnedDataset, VersionManifest
from workers.inspect.versions import Unanswerable, find_version, read_held_out
from workers.model.heads import ModalityHeads
from workers.model.loss import unit
from workers.model.rows import PairedRows
from workers.nullspace.compatibility import (
    Compatibility,
    MixedScores,
    compatibility,
    measured_agreement,
    root_ratio,
)
from workers.storage.object_store import ObjectStore
from workers.train.certify import weights_of
from workers.train.versions import read_heads, read_moments

# Scores of this many rows against all others are held at once.
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Embedded:
    """Both sides of paired rows under one version (N × E): unnormalised, or at unit length."""

    first_NE: Tensor
    second_NE: Tensor

    @property
    def unit(self) -> "Embedded":
        """At unit length, as the service returns them."""
        return Embedded(unit(self.first_NE), unit(self.second_NE))


@dataclass(frozen=True)
class MeasuredPair:
    """Held-out rows under both versions.

    `scores`: of unnormalised embeddings, which the moments predict. `unit_scores`: of unit embeddings,
    as they are stored. The overlaps are shares of the ten best stored unit vectors that are still among
    the ten best for queries of the new version.
    """

    rows: int
    scores: Compatibility
    unit_scores: Compatibility
    first_stored_overlap: float
    second_stored_overlap: float


@dataclass(frozen=True)
class ComparedDataset:
    """One dataset. `predicted.both_new` is its drift; `measured` is None without held-out rows."""

    dataset: str
    name: str
    pair: tuple[str, str]
    rows: int
    predicted: Compatibility
    measured: MeasuredPair | None


@dataclass(frozen=True)
class Comparison:
    """From the version that stored vectors to the version that makes queries."""

    model: str
    from_version: int
    to_version: int
    datasets: tuple[ComparedDataset, ...]


def compare(store: ObjectStore, model: str, old: int, new: int) -> Comparison:
    """Compare on all shared datasets. Raises Unanswerable without such a version or dataset."""
    before, after = find_version(store, model, old), find_version(store, model, new)
    shared = shared_datasets(before, after)
    if not shared:
        raise Unanswerable(f"versions {old} and {new} have learned no dataset in common")
    heads = read_heads(store, before), read_heads(store, after)
    datasets = tuple(_compared(store, learned, *heads) for learned in shared)
    return Comparison(model, old, new, datasets)


def shared_datasets(before: VersionManifest, after: VersionManifest) -> tuple[LearnedDataset, ...]:
    """Datasets that both learned from a common ancestor. Other branches have other conditioning."""
    # Unlearning another dataset changes what a line refers to, and not the line's dataset.
    known = {(line.dataset, line.version, line.moments) for line in after.learned}
    return tuple(
        line for line in before.learned if (line.dataset, line.version, line.moments) in known
    )


def _compared(
    store: ObjectStore, learned: LearnedDataset, old: ModalityHeads, new: ModalityHeads
) -> ComparedDataset:
    pair, held_out = learned.pair, read_held_out(store, learned)
    measured = None
    if held_out is not None:
        rows = held_out.rows
        measured = measured_pair(embedded(old, pair, rows), embedded(new, pair, rows))
    predicted = compatibility(
        read_moments(store, learned), weights_of(pair, old), weights_of(pair, new)
    )
    return ComparedDataset(
        learned.dataset, learned.name, pair.modalities, learned.rows, predicted, measured
    )


def embedded(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> Embedded:
    """Unnormalised embeddings, float64, of raw features."""
    return Embedded(
        heads.outputs(pair.first, raw.first_NI).double(),
        heads.outputs(pair.second, raw.second_NJ).double(),
    )


def measured_pair(old: Embedded, new: Embedded) -> MeasuredPair:
    """Compare the same rows under the old and the new version (from `embedded`)."""
    unit_old, unit_new = old.unit, new.unit
    return MeasuredPair(
        len(old.first_NE),
        measured_scores(old, new),
        measured_scores(unit_old, unit_new),
        measured_agreement(
            unit_old.first_NE, unit_new.second_NE, unit_old.second_NE
        ).top_10_overlap,
        measured_agreement(unit_old.second_NE, unit_new.first_NE, unit_old.first_NE).top_10_overlap,
    )


def measured_scores(old: Embedded, new: Embedded) -> Compatibility:
    """What `nullspace.compatibility` predicts, measured over all row combinations."""
    first_stored = Embedded(old.first_NE, new.second_NE)
    second_stored = Embedded(new.first_NE, old.second_NE)
    first, second = (
        MixedScores(_relative_change(old, mixed), _relative_change(new, mixed))
        for mixed in (first_stored, second_stored)
    )
    return Compatibility(first, second, both_new=_relative_change(old, new))


def _relative_change(before: Embedded, after: Embedded) -> float:
    """Root mean square change of all scores, relative to their size before."""
    change, size = 0.0, 0.0
    for rows in _chunks(len(before.first_NE)):
        before_NN = before.first_NE[rows] @ before.second_NE.mT
        after_NN = after.first_NE[rows] @ after.second_NE.mT
        change += float((after_NN - before_NN).square().sum())
        size += float(before_NN.square().sum())
    return root_ratio(change, size)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE))
