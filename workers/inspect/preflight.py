"""What would a dataset meet, before it is posted? Its rows, its moments, the entries left to it.

Shapes: B rows, F and G raw widths of the two sides.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract.dataset import ShardRef
from workers.contract.errors import InvalidDataset
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec
from workers.contract.version import VersionManifest
from workers.inspect.protected import protected_moments, remark_on_method
from workers.inspect.versions import check_modality, find_version, heads_of, kept_of, memory_of
from workers.methods.port import Lesson
from workers.methods.registry import method_for
from workers.model.features import unit_rows, with_constant
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows
from workers.nullspace.conditioning import conditioning
from workers.nullspace.mask import product_mask
from workers.nullspace.moments import PairMoments, SecondMoment, pair_moments, sum_of_products
from workers.nullspace.preflight import Findings, HeadMoments, Preflight, check_rows, preflight
from workers.storage.port import ObjectStore
from workers.storage.shards import FEATURES, ShardChecker, fetch, read_rows
from workers.train.data import paired_rows
from workers.train.learn import Knowledge, prepared_rows


@dataclass(frozen=True)
class HeadOutlook:
    """One modality: its moments against the earlier ones, and what this very job could move.

    `open_share`: entries that the model's method would let this dataset move, 0 to 1. It is below
    `moments.free_share` where a pair comes again, since its heads then share what is free.
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
    store: ObjectStore, model: str, version: int, pair: ModalityPair, shards: Sequence[str]
) -> DatasetOutlook:
    """Look at training shards as if they were posted to a model whose head is `version`.

    Raises Unanswerable for what cannot be asked, WorkerError where store or shards do not answer.
    """
    manifest = find_version(store, model, version)
    for modality in pair.modalities:
        check_modality(manifest, modality)
    with tempfile.TemporaryDirectory(prefix="cmcl-preflight-") as folder:
        paths = _fetched(shards, Path(folder))
        refusals = tuple(_refused_at_intake(manifest.spec, pair, paths))
        rows = _readable_rows(list(paths.values()))
    found = {} if rows is None else _findings(manifest.spec, pair, rows)
    refusals += tuple(_refused_by_training(manifest.spec, found, refusals))
    advice = tuple(f"{name}: {words}" for name, one in found.items() for words in one.advice)
    outlook = DatasetOutlook(model, version, pair.modalities, refusals, found, {}, advice)
    if refusals or rows is None:
        return outlook
    return _with_heads(outlook, _heads(store, manifest, pair, rows), manifest.spec)


def _fetched(shards: Sequence[str], folder: Path) -> dict[str, Path]:
    """Each shard on this disk, by address. Raises InvalidDataset, StorageUnavailable."""
    paths = {}
    for index, uri in enumerate(dict.fromkeys(shards)):
        paths[uri] = folder / f"{index}.parquet"
        fetch(ShardRef(uri=uri), paths[uri])
    return paths


def _refused_at_intake(
    spec: ModelSpec, pair: ModalityPair, paths: Mapping[str, Path]
) -> Iterator[str]:
    """The service's own check; of each shard the first fault."""
    checker = ShardChecker((spec.modalities[pair.first], spec.modalities[pair.second]))
    for uri, path in paths.items():
        try:
            checker.check(path, uri)
        except InvalidDataset as error:
            yield str(error)


def _readable_rows(paths: Sequence[Path]) -> PairedRows | None:
    """All rows, whatever their values are; None where columns are not what they must be."""
    if not all(_are_features(path) for path in paths):
        return None
    schemas = [pq.read_schema(path) for path in paths]
    if any(len({schema.field(column).type for schema in schemas}) > 1 for column in FEATURES):
        return None
    return paired_rows(read_rows(list(paths)))


def _are_features(path: Path) -> bool:
    """Whether both columns are there once, as fixed-size lists of floats without gaps."""
    schema = pq.read_schema(path)
    for column in FEATURES:
        kind = schema.field(column).type if schema.names.count(column) == 1 else None
        if kind is None or not pa.types.is_fixed_size_list(kind):
            return False
        if kind.list_size == 0 or not pa.types.is_floating(kind.value_type):
            return False
        values = pq.read_table(path, columns=[column]).column(column)
        if values.null_count or any(chunk.flatten().null_count for chunk in values.chunks):
            return False
    return True


def _findings(spec: ModelSpec, pair: ModalityPair, rows: PairedRows) -> dict[str, Findings]:
    sides = zip(pair.modalities, (rows.first_NI, rows.second_NJ), strict=True)
    return {modality: check_rows(raw_BF, spec.modalities[modality]) for modality, raw_BF in sides}


def _refused_by_training(
    spec: ModelSpec, found: Mapping[str, Findings], already: Sequence[str]
) -> Iterator[str]:
    for modality, one in found.items():
        if not one.usable and not already:
            yield f"{modality}: {' '.join(one.advice)}"
    rows = next((one.rows for one in found.values()), None)
    if rows is not None and rows < spec.training.batch_size:
        yield (
            f"The dataset has {rows} rows and one batch takes {spec.training.batch_size}: use more "
            "rows or a smaller training.batch_size in a new model."
        )


def _heads(
    store: ObjectStore, manifest: VersionManifest, pair: ModalityPair, raw: PairedRows
) -> dict[str, HeadOutlook]:
    knows = Knowledge(
        heads_of(store, manifest), memory_of(store, manifest), kept_of(store, manifest)
    )
    spec, heads = manifest.spec, conditioned(manifest.spec, knows.heads, pair, raw)
    rows = prepared_rows(heads, pair, raw)
    moments = pair_moments(rows.first_NI, rows.second_NJ)
    lesson = Lesson(heads, knows.memory, knows.kept, pair, spec.training, spec.seed)
    spaces = method_for(spec).update_spaces(lesson)
    return {
        modality: HeadOutlook(
            preflight(
                _new_moments(heads, pair, moments, modality),
                protected_moments(spec, heads, knows.memory, modality),
                product_mask,
                spec.protection.energy,
            ),
            open_share=1 - spaces[modality].blocked_share,
        )
        for modality in pair.modalities
    }


def conditioned(
    spec: ModelSpec, heads: ModalityHeads, pair: ModalityPair, raw: PairedRows
) -> ModalityHeads:
    """As the job would: a modality whose first dataset this is is conditioned by it."""
    new = {}
    for modality, raw_BF in zip(pair.modalities, (raw.first_NI, raw.second_NJ), strict=True):
        if modality not in heads.conditioning:
            rows_BI = with_constant(unit_rows(raw_BF))
            moment = SecondMoment(len(rows_BI), sum_of_products(rows_BI, rows_BI))
            new[modality] = conditioning(moment, spec.conditioning)
    return heads.conditioned(new)


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
