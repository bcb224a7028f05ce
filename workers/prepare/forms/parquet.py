"""Parquet: one column for each value, media as `{bytes, path}` structs or binary.

Units are ranges of rows: small row groups together, up to about 1,024 rows, or parts of a larger group. Pages are
decoded from the beginning of their group, so a very large group would be read many times and is refused.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from cmcl.contract.errors import WorkerError
from workers.files.columns import is_text
from workers.files.formats import BUFFERING, read_footer
from workers.prepare.forms.record import (
    Form,
    Record,
    Scan,
    Sides,
    StoredFile,
    UnitCutter,
    check_columns,
    columns_of,
    known_columns,
)
from workers.prepare.units import RawUnit

_LARGEST_GROUP = 4 << 30
_BATCH_BYTES = 16 << 20
_MOST_BATCH_ROWS = 1024
_IDS_AT_ONCE = 8192


def column_names(file: StoredFile) -> list[str]:
    """Return the top-level columns. Raises InvalidDataset if the file is damaged."""
    return list(_Opened(file).parquet.schema_arrow.names)


class _Opened:
    """An opened file. `footer`: digest of its footer."""

    def __init__(self, file: StoredFile) -> None:
        self._file = file
        try:
            buffered = file.buffered()
            footer = read_footer(buffered, file.size)
            # Else the file would be closed with its buffer.
            buffered.detach()
            self.footer = blake3(footer).digest()[:16]
            self.parquet = self._open([])
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self.damaged(error) from error

    def damaged(self, error: Exception) -> Exception:
        """Return an error that names the file."""
        return self._file.wrong(f"it cannot be read as Parquet: {error}")

    def batches(self, columns: list[str], rows: int, groups: list[int]) -> Iterator[pa.RecordBatch]:
        """Yield batches of some columns. Texts are read as dictionaries, so repeated texts are not expanded."""
        schema = self.parquet.schema_arrow
        texts = [name for name in columns if is_text(schema.field(name).type)]
        try:
            yield from self._open(texts).iter_batches(
                rows, row_groups=groups, columns=columns, use_threads=False
            )
        except WorkerError:
            raise
        except (pa.ArrowException, ValueError, OSError) as error:
            raise self.damaged(error) from error

    def _open(self, texts: list[str]) -> pq.ParquetFile:
        return pq.ParquetFile(
            pa.PythonFile(self._file.opened(), "r"), read_dictionary=texts, **BUFFERING
        )


def _scan(file: StoredFile, sides: Sides) -> Scan:
    file.check_digest()
    opened = _Opened(file)
    schema = opened.parquet.schema_arrow
    check_columns(schema.names, sides, file, media_inline=True)
    _check_types(schema, sides, file)
    return Scan(_ids(opened, sides, file), has_labels="label" in schema.names)


def _ids(opened: _Opened, sides: Sides, file: StoredFile) -> Iterator[Record]:
    starts = _unit_starts(opened, sides, file)
    groups, row = list(range(opened.parquet.num_row_groups)), 0
    for batch in opened.batches(["id"], _IDS_AT_ONCE, groups):
        for value in _plain(batch.column("id"), file):
            yield _record({"id": value}, opened)._replace(begins_unit=row in starts)
            row += 1
    if row != opened.parquet.metadata.num_rows:
        raise file.wrong(f"its footer declares {opened.parquet.metadata.num_rows} rows, not {row}")


def _record(values: dict[str, Any], opened: _Opened) -> Record:
    value = values["id"]
    return Record(0, 0, values, opened.footer + repr(value).encode(errors="surrogateescape"))


@dataclass
class _Group:
    """Rows of a row group, and decoded bytes of one row in the columns that are read."""

    rows: int
    row_bytes: float


def _group(opened: _Opened, index: int, sides: Sides) -> _Group:
    metadata = opened.parquet.metadata.row_group(index)
    known, size = known_columns(sides), 0
    for column in range(metadata.num_columns):
        chunk = metadata.column(column)
        if chunk.path_in_schema.partition(".")[0] in known:
            size += chunk.total_uncompressed_size
    return _Group(metadata.num_rows, size / max(1, metadata.num_rows))


def _unit_starts(opened: _Opened, sides: Sides, file: StoredFile) -> set[int]:
    """Return the numbers of the rows with which units begin."""
    cutter = UnitCutter(sides)
    starts: set[int] = set()
    row, left = 0, 0
    for index in range(opened.parquet.num_row_groups):
        group = _group(opened, index, sides)
        if group.rows * group.row_bytes > _LARGEST_GROUP:
            raise file.wrong(
                f"its row group {index} has {group.rows * group.row_bytes:.0f} bytes, at most "
                f"{_LARGEST_GROUP} are read; write it with row groups of 1000 rows"
            )
        rows = cutter.rows_of(group.row_bytes)
        if group.rows > left:
            starts.update(range(row, row + group.rows, rows))
            left = rows
            # The rest of the last unit of a group is filled by the next groups, if these are small.
            left -= (group.rows - 1) % rows + 1
        else:
            left -= group.rows
        row += group.rows
    return starts


def _read(file: StoredFile, unit: RawUnit, sides: Sides) -> Iterator[Record]:
    opened = _Opened(file)
    schema = opened.parquet.schema_arrow
    columns = [name for name in dict.fromkeys(known_columns(sides)) if name in schema.names]
    first, start, stop = 0, unit.first_row, unit.first_row + unit.rows
    for index in range(opened.parquet.num_row_groups):
        group = _group(opened, index, sides)
        if first >= stop:
            return
        if first + group.rows > start:
            at_once = max(1, min(_MOST_BATCH_ROWS, int(_BATCH_BYTES / max(1.0, group.row_bytes))))
            row = first
            for batch in opened.batches(columns, at_once, [index]):
                part = batch.slice(max(0, start - row), max(0, stop - max(row, start)))
                row += batch.num_rows
                if row <= start or not part.num_rows:
                    continue
                yield from _records(part, columns, opened, file)
                if row >= stop:
                    return
        first += group.rows


def _records(
    batch: pa.RecordBatch, columns: list[str], opened: _Opened, file: StoredFile
) -> Iterator[Record]:
    found: dict[str, list[Any]] = {}
    # Names of files first: those in structs are added to them.
    for name in sorted(columns, key=lambda name: not name.endswith("_file_name")):
        _add_values(found, batch, name, file)
    for at in range(batch.num_rows):
        yield _record({name: values[at] for name, values in found.items()}, opened)


def _add_values(
    found: dict[str, list[Any]], batch: pa.RecordBatch, name: str, file: StoredFile
) -> None:
    """Add the values of a column, row by row. A struct without bytes is the name of a file."""
    column = batch.column(name)
    if pa.types.is_struct(column.type):
        fields = {
            field.name: flat for field, flat in zip(column.type, column.flatten(), strict=True)
        }
        found[name] = _plain(fields["bytes"], file)
        if "path" in fields:
            named = f"{name}_file_name"
            others = found.get(named) or [None] * batch.num_rows
            found[named] = [
                other if data is not None or path is None else path
                for data, path, other in zip(
                    found[name], _plain(fields["path"], file), others, strict=True
                )
            ]
    elif _is_list(column.type):
        column.validate(full=True)
        found[name] = [_numbers(value) for value in column]
    else:
        found[name] = _plain(column, file)


def _numbers(value: Any) -> np.ndarray | None:
    """Return the numbers of a list. Missing numbers become NaN, for which the row is rejected."""
    if not value.is_valid:
        return None
    numbers: np.ndarray = value.values.to_numpy(zero_copy_only=False)
    return numbers


def _plain(column: pa.Array, file: StoredFile) -> list[Any]:
    """Return the values of a column, texts as bytes: rows whose text is not UTF-8 are rejected one by one."""
    try:
        if isinstance(column, pa.DictionaryArray):
            texts = _binary(column.dictionary)
            pa.DictionaryArray.from_arrays(column.indices, texts).validate(full=True)
            known = texts.to_pylist()
            return [None if at is None else known[at] for at in column.indices.to_pylist()]
        plain = _binary(column)
        plain.validate(full=True)
        return list(plain.to_pylist())
    except (pa.ArrowException, ValueError) as error:
        raise file.wrong(f"it cannot be read as Parquet: {error}") from error


def _binary(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column.cast(pa.binary())
    if pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column


def _is_list(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    )


def _is_numbers(type_: pa.DataType) -> bool:
    return _is_list(type_) and bool(
        pa.types.is_integer(type_.value_type) or pa.types.is_floating(type_.value_type)
    )


def _is_media(type_: pa.DataType) -> bool:
    if not pa.types.is_struct(type_):
        return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))
    fields = {field.name: field.type for field in type_}
    data = fields.get("bytes", pa.null())
    is_bytes = pa.types.is_binary(data) or pa.types.is_large_binary(data)
    return bool(is_bytes) and is_text(fields.get("path", pa.string()))


# What a column must hold, and whether its type does.
_Kind = tuple[str, Callable[[pa.DataType], bool]]
_TEXT: _Kind = ("text", is_text)
_ID: _Kind = (
    "text or whole numbers",
    lambda type_: bool(is_text(type_) or pa.types.is_integer(type_)),
)
_NUMBERS: _Kind = ("lists of numbers", _is_numbers)
_MEDIA: _Kind = ("{bytes, path} structs or binary", _is_media)


def _check_types(schema: pa.Schema, sides: Sides, file: StoredFile) -> None:
    wanted: dict[str, _Kind] = {"id": _ID, "label": _TEXT}
    for side in sides:
        takes = "numbers" if side.encoder is None else side.encoder.takes
        inline = {"numbers": _NUMBERS, "text": _TEXT}.get(takes, _MEDIA)
        for name in columns_of(side, media_inline=True):
            wanted[name] = inline if name == side.modality else _TEXT
    for name, (described, fits) in wanted.items():
        if schema.names.count(name) > 1:
            raise file.wrong(f"column {name!r} is there more than once")
        if name in schema.names and not fits(schema.field(name).type):
            raise file.wrong(f"column {name!r} must be {described}, is {schema.field(name).type}")


PARQUET = Form("parquet", _scan, _read)
