"""Plan a dataset: recognise its files, find repeated ids, and divide raw rows into units.

Only what ids need is read, and all bytes where the user gave a digest. Files that rows name are not opened.
"""

import codecs
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from blake3 import blake3

from cmcl.contract.dataset import Uri
from cmcl.contract.errors import InvalidDataset
from workers.files import formats
from workers.files.columns import (
    DIGEST_BYTES,
    FEATURES,
    MOST_ROWS,
    NO_ID,
    id_digest,
    repeated_ids,
)
from workers.prepare.forms.lines import BYTE_ORDER_MARK, CSV, JSONL
from workers.prepare.forms.parquet import PARQUET, column_names
from workers.prepare.forms.record import BadRow, Form, Locator, Record, StoredFile, id_of
from workers.prepare.forms.tar import MAGIC, MAGIC_OFFSET, TAR
from workers.prepare.units import DatasetPlan, DatasetSource, Duplicate, RawUnit
from workers.sandbox.child import Child
from workers.sandbox.child_process import Frame, FrameWriter

FORMS = {form.name: form for form in (JSONL, CSV, PARQUET, TAR)}
_FIRST_BYTES = 512
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_IDS = "ids"
_DUPLICATES_IN_A_FRAME = 1000
# A list of more would be as large as the dataset.
_MOST_DUPLICATES = 1_000_000


def plan(child: Child, source: DatasetSource) -> DatasetPlan:
    """Plan a dataset in a child. Raises InvalidDataset, InvalidUri, StorageUnavailable."""
    frames = child.collect(plan_files, source)
    try:
        return _planned(frames, source)
    except (ValueError, LookupError, TypeError) as error:
        # A child that parsed hostile bytes may send anything.
        raise InvalidDataset(f"reading the files sent no sound result: {error}") from error


def _planned(frames: list[Frame], source: DatasetSource) -> DatasetPlan:
    units: list[RawUnit] = []
    features: list[int] = []
    duplicates: list[tuple[int, int]] = []
    for frame in frames:
        if "unit" in frame.header:
            units.append(RawUnit.model_validate_json(frame.body))
        elif "features" in frame.header:
            features.append(int(frame.header["features"]))
        else:
            duplicates += [(int(row), int(first)) for row, first in frame.header["duplicates"]]
    planned = {source.files[index].uri for index in (*features, *(unit.file for unit in units))}
    missing = [file.uri for file in source.files if file.uri not in planned]
    if missing:
        raise LookupError(f"{missing[0]} is not planned")
    if features and units:
        raise InvalidDataset(
            f"{source.files[features[0]].uri} holds features, and {source.files[units[0].file].uri} raw "
            "rows: send them as two datasets"
        )
    return DatasetPlan(
        units=_with_duplicates(units, duplicates, source),
        feature_files=features,
        rows=sum(unit.rows for unit in units),
    )


def _with_duplicates(
    units: list[RawUnit], duplicates: list[tuple[int, int]], source: DatasetSource
) -> list[RawUnit]:
    """Add to each unit its rows with repeated ids. `duplicates`: numbers of rows over all files."""
    starts, number = [], 0
    for unit in units:
        starts.append(number)
        number += unit.rows

    def place(row: int) -> tuple[int, int]:
        """Return the index of the unit of a row, and the number of the row in its file."""
        at = bisect_right(starts, row) - 1
        return at, units[at].first_row + row - starts[at]

    of_unit: dict[int, list[Duplicate]] = {}
    for row, first in sorted(duplicates):
        (at, in_file), (first_at, _) = place(row), place(first)
        uri: Uri = source.files[units[first_at].file].uri
        of_unit.setdefault(at, []).append(Duplicate(row=in_file, first_file=uri))
    return [
        unit.model_copy(update={"duplicates": tuple(of_unit[at])}) if at in of_unit else unit
        for at, unit in enumerate(units)
    ]


def plan_files(request: DatasetSource, output: FrameWriter) -> None:
    """Scan users' files, and send units, files of features and repeated ids. Runs in the child."""
    locator = Locator(request.allowed_prefixes, request.locations)
    path = output.folder / _IDS
    with path.open("wb") as ids:
        for index, ref in enumerate(request.files):
            output.step(f"reading {ref.uri}")
            file = StoredFile(ref, locator)
            form = form_of(file)
            if form is None:
                output.send({"features": index})
                continue
            for unit in _units(file, index, form, request, ids):
                output.send({"unit": index}, [unit.model_dump_json().encode()])
    for some in _repeated(path):
        output.send({"duplicates": some})


def _units(
    file: StoredFile, index: int, form: Form, request: DatasetSource, ids: IO[bytes]
) -> list[RawUnit]:
    """Divide a file into units, and add the digests of its ids.

    Raises InvalidDataset if it has no rows, or the dataset has too many.
    """
    scan = form.scan(file, request.sides)
    most = MOST_ROWS - ids.tell() // DIGEST_BYTES
    units: list[RawUnit] = []
    last, first_row, seal, has_labels = None, 0, blake3(), False

    def end(stop: int, row: int) -> None:
        """End the unit in work before a row, which begins at byte `stop`."""
        assert row > first_row, "a unit without rows"
        units[-1] = units[-1].model_copy(
            update={"stop": stop, "rows": row - first_row, "seal": seal.hexdigest()}
        )

    row = -1
    for row, record in enumerate(scan.records):
        if row == most:
            raise file.wrong(f"a dataset has at most {MOST_ROWS} rows; split it in two")
        if last is None or record.begins_unit:
            if last is not None:
                end(last.stop, row)
            first_row, seal = row, blake3()
            units.append(
                RawUnit(
                    file=index,
                    form=form.name,
                    first_row=row,
                    first_line=record.line,
                    rows=1,
                    start=record.start,
                    columns=scan.columns,
                    has_labels=False,
                    seal="",
                )
            )
        last = record
        seal.update(record.seal)
        has_labels = has_labels or record.values.get("label") is not None
        ids.write(_digest_of_id(record))
    if last is None:
        raise file.wrong("it has no rows, at least 1 is needed")
    end(last.stop, row + 1)
    labels = has_labels if scan.has_labels is None else scan.has_labels
    return [unit.model_copy(update={"has_labels": labels}) for unit in units]


def _digest_of_id(record: Record) -> bytes:
    if record.problem is not None:
        return NO_ID
    try:
        return id_digest(id_of(record.values))
    except BadRow:
        return NO_ID  # The reader of the unit finds the same error, and rejects the row.


def _repeated(ids: Path) -> Iterator[list[list[int]]]:
    """Yield rows whose id an earlier row has, each with the first row that has it: numbers over all files, in parts."""
    if not ids.stat().st_size:
        return
    # Mapped, the digests of a large dataset are no memory of this process.
    found_K2 = repeated_ids(np.memmap(ids, np.uint64, "r"))
    if len(found_K2) > _MOST_DUPLICATES:
        raise InvalidDataset(
            f"more than {_MOST_DUPLICATES} rows repeat the id of another one; ids are unique over all "
            "files of a dataset"
        )
    for start in range(0, len(found_K2), _DUPLICATES_IN_A_FRAME):
        yield found_K2[start : start + _DUPLICATES_IN_A_FRAME].tolist()


def form_of(file: StoredFile) -> Form | None:
    """Return the form of a file of raw rows; None for a file of features.

    Parquet holds features if it has a column of them. Raises InvalidDataset for any other file.
    """
    first = file.read_range(0, _FIRST_BYTES)
    known = formats.format_by_magic(first)
    if known is formats.PARQUET:
        return None if set(FEATURES).intersection(column_names(file)) else PARQUET
    if known is not None:
        return None
    if first[MAGIC_OFFSET:].startswith(MAGIC):
        return TAR
    if (mistaken := formats.mistaken_format(first)) is not None:
        raise file.wrong(mistaken)
    return _text_form(first, file)


def _text_form(first: bytes, file: StoredFile) -> Form:
    text = first.removeprefix(BYTE_ORDER_MARK).lstrip()
    if first.startswith(_UTF_16):
        raise file.wrong("it is UTF-16; write it as UTF-8")
    if text.startswith(b"{"):
        return JSONL
    if text.startswith(b"["):
        raise file.wrong(
            "it is a JSON array; write one object a line, without brackets around them"
        )
    if not text or not _is_text(text.partition(b"\n")[0]):
        raise file.wrong(
            "by its first bytes it is no file of rows (JSONL, CSV with a header, Parquet, tar), and none of "
            "features (Parquet, Arrow IPC, npz, safetensors)"
        )
    return CSV


def _is_text(line: bytes) -> bool:
    """Return whether a line can be a header: UTF-8, perhaps cut within a character."""
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
