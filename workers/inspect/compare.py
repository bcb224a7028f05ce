"""Do vectors stored by one version still meet queries of another as they did?

For every dataset that both have learned: what moments predict, and what held-out rows say.
"""

from dataclasses import dataclass

from cmcl.contract.version import LearnedDataset, VersionManifest
from workers.inspect.measured import MeasuredPair, embedded, measured_pair
from workers.inspect.versions import Unanswerable, find_version, heads_of, held_out_of, moments_of
from workers.model.heads import ModalityHeads
from workers.nullspace.compatibility import Compatibility, compatibility
from workers.storage.port import ObjectStore
from workers.train.certify import weights_of


@dataclass(frozen=True)
class ComparedDataset:
    """One dataset; `predicted.both_new` is its drift. `measured`: None without held-out rows."""

    dataset: str
    name: str
    pair: tuple[str, str]
    rows: int
    predicted: Compatibility
    measured: MeasuredPair | None


@dataclass(frozen=True)
class Comparison:
    """From the version that stored vectors to the one that queries are made with."""

    model: str
    from_version: int
    to_version: int
    datasets: tuple[ComparedDataset, ...]


def compare(store: ObjectStore, model: str, old: int, new: int) -> Comparison:
    """Raises Unanswerable if there is no such version or no dataset that both learned."""
    before, after = find_version(store, model, old), find_version(store, model, new)
    shared = shared_datasets(before, after)
    if not shared:
        raise Unanswerable(f"versions {old} and {new} have learned no dataset in common")
    heads = heads_of(store, before), heads_of(store, after)
    datasets = tuple(_compared(store, learned, *heads) for learned in shared)
    return Comparison(model, old, new, datasets)


def shared_datasets(before: VersionManifest, after: VersionManifest) -> tuple[LearnedDataset, ...]:
    """What both learned from a common ancestor. Another branch has other conditioning."""
    known = set(after.learned)
    return tuple(learned for learned in before.learned if learned in known)


def _compared(
    store: ObjectStore, learned: LearnedDataset, old: ModalityHeads, new: ModalityHeads
) -> ComparedDataset:
    pair, held_out = learned.pair, held_out_of(store, learned)
    measured = None
    if held_out is not None:
        rows = held_out.rows
        measured = measured_pair(embedded(old, pair, rows), embedded(new, pair, rows))
    predicted = compatibility(
        moments_of(store, learned), weights_of(pair, old), weights_of(pair, new)
    )
    return ComparedDataset(
        learned.dataset, learned.name, pair.modalities, learned.rows, predicted, measured
    )
