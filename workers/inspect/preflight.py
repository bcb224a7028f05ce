"""What would a dataset meet, before it is posted? Its rows, its moments, the entries left to it.

Shapes: B rows, F and G raw widths of the two sides.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.preflight import AskedShard
from cmcl.contract.version import VersionManifest
from workers.inspect.protected import protected_moments, remark_on_method
from workers.inspect.sample import sampled
from workers.inspect.versions import check_modality, find_version, heads_of, kept_of, memory_of
from workers.methods.port import Lesson
from workers.methods.registry import method_for
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows
from workers.nullspace.mask import product_mask
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.preflight import Findings, HeadMoments, Preflight, check_rows, preflight
from workers.storage.formats.user_file import Side
from workers.storage.intake import Address, take
from workers.storage.port import ObjectStore
from workers.storage.shards import FEATURES, ShardChecker
from workers.train.learn import Knowledge, conditioned, prepared_rows
from workers.train.rows.held import HeldRows
from workers.train.run import Run


@dataclass(frozen=True)
class HeadOutlook:
    """One modality: its moments against the earlier ones, and what this very job could move.

    `open_share`: entries that the model's method would let this dataset move, 0 to 1. It differs
    from `moments.free_share`, which looks at one head alone, as the method looks at both: where a
    pair comes again it is less, since its heads then share what is free.
    """

    moments: Preflight
    open_share: float


@dataclass(frozen=True)
class DatasetOutlook:
    """`refusals`: why intake or training would refuse it. `heads` is empty if it has any.

    `findings`: by modality; none where a side cannot be read at all. `advice`: sentences.
    """

    model: str
    version: int
    pair: tuple[str, str]
    refusals: tuple[str, ...]
    findings: Mapping[str, Findings]
    heads: Mapping[str, HeadOutlook]
    advice: tuple[str, ...]

    @property
    def refused(self) -> bool:
        return bool(self.refusals)


def dataset_outlook(
    store: ObjectStore,
    model: str,
    version: int,
    pair: ModalityPair,
    shards: Sequence[AskedShard],
    allowed: tuple[str, ...] | None = None,
) -> DatasetOutlook:
    """Look at training shards as if they were posted to a model whose head is `version`.

    `allowed`: prefixes that users' own addresses must not leave; None: wherever they lie.
    Raises Unanswerable for what cannot be asked, WorkerError where store or shards do not answer.
    """
    manifest = find_version(store, model, version)
    for modality in pair.modalities:
        check_modality(manifest, modality)
    with tempfile.TemporaryDirectory(prefix="cmcl-preflight-") as folder:
        paths = {Path(folder) / f"{index}.parquet": shard for index, shard in enumerate(shards)}
        refusals = tuple(_refused_at_intake(manifest.spec, pair, paths, allowed))
        sample = sampled(list(paths))
    if sample is None:
        return DatasetOutlook(model, version, pair.modalities, refusals, {}, {}, ())
    rows, found = sample.rows, _findings(manifest.spec, pair, sample.rows)
    refusals += tuple(_refused_by_training(manifest.spec, sample.of))
    advice = (
        *sample.advice,
        *(f"{name}: {words}" for name, one in found.items() for words in one.advice),
    )
    outlook = DatasetOutlook(model, version, pair.modalities, refusals, found, {}, advice)
    if refusals:
        return outlook
    return _with_heads(outlook, _heads(store, manifest, pair, rows), manifest.spec)


def _refused_at_intake(
    spec: ModelSpec,
    pair: ModalityPair,
    paths: Mapping[Path, AskedShard],
    allowed: tuple[str, ...] | None,
) -> Iterator[str]:
    """Bring each to its path and check it as the service does; of each shard the first fault."""
    sides = _sides(spec, pair)
    checker = ShardChecker((sides[0].width, sides[1].width))
    for path, shard in paths.items():
        address = Address(shard.address or shard.uri, None if shard.address else allowed)
        try:
            take(shard, address, path, sides)
            checker.check(path, shard.uri)
        except InvalidDataset as error:
            yield str(error)


def _sides(spec: ModelSpec, pair: ModalityPair) -> tuple[Side, Side]:
    first, second = (
        Side(column, modality, spec.modalities[modality])
        for column, modality in zip(FEATURES, pair.modalities, strict=True)
    )
    return first, second


def _findings(spec: ModelSpec, pair: ModalityPair, rows: PairedRows) -> dict[str, Findings]:
    sides = zip(pair.modalities, (rows.first_NI, rows.second_NJ), strict=True)
    return {modality: check_rows(raw_BF, spec.modalities[modality]) for modality, raw_BF in sides}


def _refused_by_training(spec: ModelSpec, rows: int) -> Iterator[str]:
    batch = spec.training.batch_size
    if rows < batch:
        yield (
            f"The dataset has {rows} rows and one batch takes {batch}: use more rows, or a "
            "smaller training.batch_size in a new model."
        )


def _heads(
    store: ObjectStore, manifest: VersionManifest, pair: ModalityPair, raw: PairedRows
) -> dict[str, HeadOutlook]:
    knows = Knowledge(
        heads_of(store, manifest), memory_of(store, manifest), kept_of(store, manifest)
    )
    spec = manifest.spec
    heads = conditioned(spec, knows.heads, pair, HeldRows(raw), Run())
    rows = prepared_rows(heads, pair, raw)
    moments = pair_moments(rows.first_NI, rows.second_NJ)
    lesson = Lesson(heads, knows.memory, knows.kept, pair, spec.training, spec.seed)
    spaces = method_for(spec).update_spaces(lesson)
    return {
        modality: HeadOutlook(
            preflight(
                _new_moments(heads, pair, moments, modality),
                protected_moments(spec, lesson, modality),
                product_mask,
                spec.protection.energy,
            ),
            open_share=1 - spaces[modality].blocked_share,
        )
        for modality in pair.modalities
    }


def _new_moments(
    heads: ModalityHeads, pair: ModalityPair, moments: PairMoments, modality: str
) -> HeadMoments:
    """Its inputs, and its partners' embeddings: what its gradient will be made of."""
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
    advice += remark_on_method(spec)
    return replace(outlook, refusals=refusals, heads=heads, advice=(*outlook.advice, *advice))
