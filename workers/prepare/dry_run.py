"""Dry run: what a prepared dataset would meet, in place of learning it. Its rows, its moments, the entries that are free for it.

Shapes: B rows, F and G raw widths of the two sides.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cmcl.contract.capacity import FULL_BELOW
from cmcl.contract.dataset import Shard
from cmcl.contract.errors import InvalidDataset
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import VersionManifest
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import read_version
from workers.files.columns import reading
from workers.files.shards import FEATURES, download, open_in_pieces, rows_of
from workers.methods.method import TrainingContext
from workers.methods.preserve import protected_moments
from workers.methods.registry import method_for
from workers.model.heads import ModalityHeads, PairedRows, unit_rows, with_new_modalities
from workers.nullspace.capacity import HeadMoments, Preflight, preflight
from workers.nullspace.closed_form import NO_VARIANCE
from workers.nullspace.mask import product_mask
from workers.nullspace.moments import PairMoments, pair_moments
from workers.nullspace.subspace import EigenBasis
from workers.train.dataset import paired_rows
from workers.train.learn import ModelState, condition_new_modalities, no_variance, prepare_rows
from workers.train.rows import RowsInMemory
from workers.train.run import Run
from workers.train.versions import read_heads, read_memory, read_method_state

# Large datasets are sampled at regular intervals.
_MOST_SHARDS = 256
# 256 MiB as float32: moments are summed and duplicates searched in these values.
MOST_VALUES = 2**26
# Rows are multiples of each other if their cosines are 1 to float32 and float16 rounding.
_PARALLEL = 1e-6


@dataclass(frozen=True)
class Sample:
    """A regular sample of the `of` rows of a dataset."""

    rows: PairedRows
    of: int

    @property
    def advice(self) -> tuple[str, ...]:
        """A sentence if these are not all rows."""
        if len(self.rows) == self.of:
            return ()
        return (
            f"Findings and shares are of a regular sample of {len(self.rows):,} of {self.of:,} rows.",
        )


@dataclass(frozen=True)
class Findings:
    """What is odd in raw rows.

    Counts of values (`nan`, `infinite`), of rows (`zero_rows`; `duplicate_rows` equal an earlier one)
    and of columns (`constant_columns`). The last three are of finite rows. `rank_one`: all rows are
    multiples of one row.
    """

    rows: int
    width: int
    expected_width: int
    nan: int
    infinite: int
    zero_rows: int
    duplicate_rows: int
    constant_columns: int
    rank_one: bool

    @property
    def advice(self) -> tuple[str, ...]:
        """One sentence for each oddity."""
        return tuple(_advice_on_rows(self))


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
        heads = condition_new_modalities(spec, heads, pair, RowsInMemory(raw), Run())
    rows = prepare_rows(heads, pair, raw)
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


def sampled(paths: Sequence[Path], most_values: int = MOST_VALUES) -> Sample:
    """A sample of at most `most_values` values over both sides, from shards that were verified.

    Raises InvalidDataset if the shards do not have the same columns, and StorageUnavailable if this machine cannot
    read them.
    """
    with reading("the rows", "Parquet", pa.ArrowException):
        schemas = [file.schema_arrow for file in _opened(paths)]
        if not all(_are_alike(schemas, column) for column in FEATURES):
            raise InvalidDataset("the shards of the dataset do not have the same columns")
        width = sum(schemas[0].field(column).type.list_size for column in FEATURES)
        rows = sum(file.metadata.num_rows for file in _opened(paths))
        every = -(-rows // max(1, most_values // width))
        return Sample(paired_rows(rows_of(_opened(paths), every=every)), rows)


def _opened(paths: Sequence[Path]) -> Iterator[pq.ParquetFile]:
    """Open the files one after the other; each is closed before the next one is opened."""
    for path in paths:
        with open_in_pieces(path) as file:
            yield file


def _are_alike(schemas: Sequence[pa.Schema], column: str) -> bool:
    """Whether every file has the column once, as fixed-size lists of floats of one width."""
    if any(schema.names.count(name) > 1 for schema in schemas for name in ("label", column)):
        return False
    if any(column not in schema.names for schema in schemas):
        return False
    first, *others = (schema.field(column).type for schema in schemas)
    if not pa.types.is_fixed_size_list(first) or any(
        _list_type(kind) != _list_type(first) for kind in others
    ):
        return False
    return bool(first.list_size > 0 and pa.types.is_floating(first.value_type))


def _list_type(kind: pa.DataType) -> tuple[object, ...]:
    """Value type and length of a list type, without its nullability."""
    return (kind.value_type, kind.list_size) if pa.types.is_fixed_size_list(kind) else (kind,)


def check_rows(raw_BF: Tensor, expected_width: int) -> Findings:
    """Check raw encoder outputs (any float type) of a modality that is `expected_width` wide.

    Raises ValueError if they are not a matrix.
    """
    if raw_BF.ndim != 2:
        raise ValueError(f"features of shape {tuple(raw_BF.shape)}, they must be rows × width")
    rows_BF = raw_BF.to(torch.promote_types(raw_BF.dtype, torch.float32))
    finite_BF = rows_BF[rows_BF.isfinite().all(dim=1)]
    nonzero_BF = finite_BF[(finite_BF != 0).any(dim=1)]
    return Findings(
        rows=raw_BF.shape[0],
        width=raw_BF.shape[1],
        expected_width=expected_width,
        nan=int(rows_BF.isnan().sum()),
        infinite=int(rows_BF.isinf().sum()),
        zero_rows=len(finite_BF) - len(nonzero_BF),
        duplicate_rows=_duplicates(finite_BF),
        constant_columns=_constant_columns(finite_BF),
        rank_one=_rank_one(nonzero_BF),
    )


def _duplicates(rows_BF: Tensor) -> int:
    if len(rows_BF) < 2 or rows_BF.shape[1] == 0:
        return 0
    return len(rows_BF) - len(torch.unique(rows_BF, dim=0))


def _constant_columns(rows_BF: Tensor) -> int:
    """0 for a single row, in which every column is constant."""
    if len(rows_BF) < 2:
        return 0
    return int((rows_BF == rows_BF[0]).all(dim=0).sum())


def _rank_one(nonzero_BF: Tensor) -> bool:
    """Whether there are two rows or more, all parallel. Scaled first: squares overflow float32."""
    if len(nonzero_BF) < 2:
        return False
    scaled_BF = nonzero_BF / nonzero_BF.abs().amax(dim=1, keepdim=True)
    unit_BF = torch.nn.functional.normalize(scaled_BF, dim=1)
    return bool(((unit_BF @ unit_BF[0]).abs() >= 1 - _PARALLEL).all())


def _advice_on_rows(found: Findings) -> Iterator[str]:
    if found.rows == 0:
        yield "There are no rows."
    if found.width != found.expected_width:
        yield (
            f"Features are {found.width} wide, but {found.expected_width} in this modality: "
            "use the encoder that it was declared with."
        )
    if found.nan or found.infinite:
        yield (
            f"{found.nan:,} values are NaN and {found.infinite:,} infinite: remove their rows "
            "(float16 overflows above 65,504)."
        )
    if found.zero_rows:
        yield f"{found.zero_rows:,} rows are all zeros and have no direction: remove them."
    yield from _advice_on_content(found)


def _advice_on_content(found: Findings) -> Iterator[str]:
    if found.duplicate_rows:
        yield (
            f"{found.duplicate_rows:,} of {found.rows:,} rows repeat an earlier one: they teach "
            "less than their number."
        )
    if found.constant_columns:
        yield (
            f"{found.constant_columns:,} of {found.width:,} columns are constant and carry "
            "nothing: is the encoder set up as it was meant to be?"
        )
    if found.rank_one:
        yield "All rows are multiples of one row: at unit length there are at most two different ones."
