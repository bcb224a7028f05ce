"""Dry run: what a prepared dataset would meet, in place of learning it. Its rows, its moments, the entries that are free for it.

Shapes: B rows, F and G raw widths of the two sides.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cmcl.contract.capacity import FULL_BELOW
from cmcl.contract.dataset import Shard
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_version
from workers.files.shards import download
from workers.methods.method import TrainingContext
from workers.methods.preserve import protected_moments
from workers.methods.registry import method_for
from workers.model.heads import ModalityHeads, unit_rows, with_new_modalities
from workers.model.rows import PairedRows
from workers.nullspace.capacity import HeadMoments, Preflight, preflight
from workers.nullspace.closed_form import NO_VARIANCE
from workers.nullspace.mask import product_mask
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.subspace import EigenBasis
from workers.prepare.row_findings import Findings, Sample, check_rows, sampled
from workers.train.data.rows import HeldRows
from workers.train.learn import ModelState, no_variance
from workers.train.run import Run
from workers.train.sums import conditioned, prepared_rows
from workers.train.versions import read_heads, read_memory, read_method_state

# Large datasets are sampled at regular intervals.
_MOST_SHARDS = 256


@dataclass(frozen=True)
class HeadOutlook:
    """One modality: its moments compared with the earlier ones, and what this job could move.

    `open_share`: entries that the model's method would let this dataset move, 0 to 1. It differs from
    `moments.free_share`, which is of one head by itself: if a pair is trained again, its two heads
    share what is free, and it is less.
    """

    moments: Preflight
    open_share: float


@dataclass(frozen=True)
class DatasetOutlook:
    """The result of a dry run.

    `refusals`: why training would refuse the dataset; `heads` is empty if there are any. `findings`: by modality.
    `advice`: sentences.
    """

    model: str
    version: int
    pair: tuple[str, str]
    refusals: tuple[str, ...]
    findings: Mapping[str, Findings]
    heads: Mapping[str, HeadOutlook]
    advice: tuple[str, ...]


def dataset_outlook(
    store: ObjectStore,
    model: str,
    version: int,
    spec: ModelSpec,
    pair: ModalityPair,
    shards: Sequence[Shard],
) -> DatasetOutlook:
    """Check prepared training shards. `version`: the latest one, 0 before the first. Raises WorkerError."""
    outlook = DatasetOutlook(model, version, pair.modalities, (), {}, {}, ())
    if not shards:
        return outlook
    chosen = shards[:: -(-len(shards) // _MOST_SHARDS)]
    with tempfile.TemporaryDirectory(prefix="cmcl-dry-run-") as folder:
        paths = [Path(folder) / f"{index}.parquet" for index in range(len(chosen))]
        for path, shard in zip(paths, chosen, strict=True):
            download(shard, shard.uri, path)
        sample = sampled(paths)
    rows = sum(shard.rows for shard in shards)
    return _of_sample(store, outlook, spec, replace(sample, of=rows))


def _of_sample(
    store: ObjectStore, outlook: DatasetOutlook, spec: ModelSpec, sample: Sample
) -> DatasetOutlook:
    pair = ModalityPair(first=outlook.pair[0], second=outlook.pair[1])
    found = _findings(spec, pair, sample.rows)
    refusals = (*outlook.refusals, *_refused_by_training(spec, pair, sample.rows, sample.of))
    advice = (
        *sample.advice,
        *(f"{name}: {words}" for name, one in found.items() for words in one.advice),
    )
    outlook = replace(outlook, refusals=refusals, findings=found, advice=advice)
    if refusals or outlook.version == 0:
        return outlook
    manifest = read_version(store, outlook.model, outlook.version)
    return _with_heads(outlook, _heads(store, manifest, spec, pair, sample.rows), spec)


def _findings(spec: ModelSpec, pair: ModalityPair, rows: PairedRows) -> dict[str, Findings]:
    sides = zip(pair.modalities, (rows.first_NI, rows.second_NJ), strict=True)
    return {modality: check_rows(raw_BF, spec.widths[modality]) for modality, raw_BF in sides}


def _refused_by_training(
    spec: ModelSpec, pair: ModalityPair, sample: PairedRows, rows: int
) -> Iterator[str]:
    for modality, raw_BF in zip(pair.modalities, (sample.first_NI, sample.second_NJ), strict=True):
        unit_BF = unit_rows(raw_BF).double()
        variance = float((unit_BF - unit_BF.mean(0)).square().sum(1).mean())
        if variance <= NO_VARIANCE:
            yield no_variance(modality, variance)
    batch = spec.training.batch_size
    if rows < batch:
        yield (
            f"The dataset has {rows} rows and one batch takes {batch}: use more rows, or a "
            "smaller training.batch_size in a new model."
        )


def _heads(
    store: ObjectStore,
    manifest: VersionManifest,
    spec: ModelSpec,
    pair: ModalityPair,
    raw: PairedRows,
) -> dict[str, HeadOutlook]:
    state = ModelState(
        with_new_modalities(read_heads(store, manifest), spec),
        read_memory(store, manifest),
        read_method_state(store, manifest),
    )
    heads = state.heads
    if not spec.solves:
        heads = conditioned(spec, heads, pair, HeldRows(raw), Run())
    rows = prepared_rows(heads, pair, raw)
    moments = pair_moments(rows.first_NI, rows.second_NJ)
    context = TrainingContext(
        heads, state.memory, state.method_state, pair, spec.training, spec.seed
    )
    spaces = method_for(spec).update_spaces(context)
    return {
        modality: HeadOutlook(
            preflight(
                _new_moments(heads, pair, moments, modality),
                protected_moments(context, modality),
                _everything if spec.solves else product_mask,
                spec.kept_energy,
            ),
            open_share=1 - spaces[modality].blocked_share,
        )
        for modality in pair.modalities
    }


def _everything(outputs: EigenBasis, inputs: EigenBasis, _kept_energy: float) -> Tensor:
    """All entries (E × I): heads that are solved from moments have no mask."""
    return torch.ones(outputs.width, inputs.width, dtype=torch.bool)


def _new_moments(
    heads: ModalityHeads, pair: ModalityPair, moments: PairMoments, modality: str
) -> HeadMoments:
    """Moments of its inputs and of its partners' embeddings, of which its gradient consists."""
    if modality == pair.first:
        return HeadMoments(moments.first, moments.second.through(heads.weights[pair.second]))
    return HeadMoments(moments.second, moments.first.through(heads.weights[pair.first]))


def _with_heads(
    outlook: DatasetOutlook, heads: Mapping[str, HeadOutlook], spec: ModelSpec
) -> DatasetOutlook:
    advice = [f"{name}: {words}" for name, one in heads.items() for words in one.moments.advice]
    refusals = outlook.refusals
    if not any(one.open_share > 0 for one in heads.values()):
        refusals = ("Nothing can be learned: all entries of both heads are blocked.",)
    for name, one in heads.items():
        advice += [f"{name}: {words}" for words in _advice_on_afterwards(one)]
    if spec.method:
        advice.append(f"The method is {spec.method}: blocked is what preserve would block.")
    return replace(outlook, refusals=refusals, heads=heads, advice=(*outlook.advice, *advice))


def _advice_on_afterwards(head: HeadOutlook) -> Iterator[str]:
    free = head.moments.free_share_after
    if free < FULL_BELOW:
        yield (
            f"After this dataset {free:.1%} of this head's entries will be free: "
            "later datasets will learn little."
        )
