"""A sample of the rows of a prepared dataset that fits into memory, and what is odd in it.

Shapes: B rows, F width of the raw feature.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cmcl.contract.errors import InvalidDataset
from workers.files.columns import reading
from workers.files.shards import FEATURES, open_in_pieces, rows_of
from workers.model.rows import PairedRows
from workers.train.data.dataset import paired_rows

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
