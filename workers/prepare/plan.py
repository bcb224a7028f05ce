"""Plan a dataset: recognise its files, find repeated ids, and divide raw rows into units.

Only what ids need is read, and all bytes where the user gave a digest. Files that rows name are not opened.
Repeated ids are found among any number of rows in bounded memory: sixteen bytes of digest are kept for each id, in
memory up to a million rows, then in files by their first bits.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from blake3 import blake3

from cmcl.contract.dataset import Uri
from cmcl.contract.errors import InvalidDataset
from workers.files.shards import MOST_ROWS
from workers.prepare.forms.record import BadRow, Form, Record
from workers.prepare.forms.registry import form_of
from workers.prepare.items import id_of
from workers.prepare.raw_rows import Duplicate, Plan, RawSource, RawUnit
from workers.prepare.stored_file import Locator, StoredFile
from workers.sandbox.child import Child
from workers.sandbox.frames import Frame, FrameWriter

_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])
_ROWS_IN_MEMORY = 1 << 20
_DIGEST_FILES = 256

_DUPLICATES_IN_A_FRAME = 1000
# A list of more would be as large as the dataset.
_MOST_DUPLICATES = 1_000_000


class DuplicateFinder:
    """Finder of repeated ids. `folder`: for files of digests."""

    def __init__(self, folder: Path, rows_in_memory: int = _ROWS_IN_MEMORY) -> None:
        self._folder = folder
        self._rows_in_memory = rows_in_memory
        self._packed = bytearray()
        self._is_spilled = False

    def add(self, value: str, row: int) -> None:
        """Add the id of a row. `row`: its number, which grows with each call."""
        digest = hashlib.blake2b(value.encode(), digest_size=16).digest()
        self._packed += digest + row.to_bytes(8, "little")
        if len(self._packed) == self._rows_in_memory * _DIGEST.itemsize:
            self._spill()

    def found(self) -> Iterator[tuple[int, int]]:
        """Yield each row whose id an earlier row has, and the first row with that id."""
        if not self._is_spilled:
            yield from _repeated(self._records())
            return
        self._spill()
        for part in range(_DIGEST_FILES):
            path = self._path(part)
            if path.exists():
                yield from _repeated(np.fromfile(path, _DIGEST))
                path.unlink()

    def _records(self) -> np.ndarray:
        return np.frombuffer(bytes(self._packed), _DIGEST)

    def _spill(self) -> None:
        records = self._records()
        self._packed.clear()
        self._is_spilled = True
        part_B = (records["high"] >> np.uint64(56)).astype(np.uint8)
        # Stable, so that rows of one file keep their order.
        order_B = np.argsort(part_B, kind="stable")
        bounds = np.searchsorted(part_B[order_B], np.arange(_DIGEST_FILES + 1))
        for part, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                with self._path(part).open("ab") as file:
                    records[order_B[start:stop]].tofile(file)

    def _path(self, part: int) -> Path:
        return self._folder / f"ids-{part:03d}"


def _repeated(records: np.ndarray) -> Iterator[tuple[int, int]]:
    """The later rows of each digest, with the first one."""
    order_B = np.lexsort((records["row"], records["low"], records["high"]))
    ordered = records[order_B]
    is_same_B = np.zeros(len(ordered), bool)
    is_same_B[1:] = (ordered["high"][1:] == ordered["high"][:-1]) & (
        ordered["low"][1:] == ordered["low"][:-1]
    )
    first = 0
    for index in np.flatnonzero(is_same_B):
        if not is_same_B[index - 1]:
            first = int(ordered["row"][index - 1])
        yield int(ordered["row"][index]), first


def plan(child: Child, source: RawSource) -> Plan:
    """Plan a dataset in a child. Raises InvalidDataset, InvalidUri, StorageUnavailable."""
    frames = child.collect(plan_files, source)
    try:
        return _planned(frames, source)
    except (ValueError, LookupError, TypeError) as error:
        # A child that parsed hostile bytes may send anything.
        raise InvalidDataset(f"reading the files sent no sound result: {error}") from error


def _planned(frames: list[Frame], source: RawSource) -> Plan:
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
    return Plan(
        units=_with_duplicates(units, duplicates, source),
        feature_files=features,
        rows=sum(unit.rows for unit in units),
    )


def _with_duplicates(
    units: list[RawUnit], duplicates: list[tuple[int, int]], source: RawSource
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


def plan_files(request: RawSource, output: FrameWriter) -> None:
    """Scan users' files, and send units, files of features and repeated ids. Runs in the child."""
    locator = Locator(request.allowed_prefixes, request.locations)
    finder, rows = DuplicateFinder(output.folder), 0
    for index, ref in enumerate(request.files):
        output.step(f"reading {ref.uri}")
        file = StoredFile(ref, locator)
        form = form_of(file)
        if form is None:
            output.send({"features": index})
            continue
        planner = _Planner(file, index, form, finder, rows)
        for unit in planner.units(request):
            output.send({"unit": index}, [unit.model_dump_json().encode()])
        rows = planner.number
    for some in _in_parts(finder.found()):
        output.send({"duplicates": some})


def _in_parts(found: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    part: list[tuple[int, int]] = []
    for count, each in enumerate(found, start=1):
        part.append(each)
        if count > _MOST_DUPLICATES:
            raise InvalidDataset(
                f"more than {_MOST_DUPLICATES} rows repeat the id of another one; ids are unique over all "
                "files of a dataset"
            )
        if len(part) == _DUPLICATES_IN_A_FRAME:
            yield part
            part = []
    if part:
        yield part


class _Planner:
    """Divides one file into units. `number`: number of the next row over all files."""

    def __init__(
        self, file: StoredFile, index: int, form: Form, finder: DuplicateFinder, number: int
    ) -> None:
        self._file, self._index, self._form = file, index, form
        self._finder = finder
        self.number = number

    def units(self, request: RawSource) -> list[RawUnit]:
        """Return the units of the file. Raises InvalidDataset if it has no rows, or the dataset has too many."""
        scan = self._form.scan(self._file, request.sides)
        units: list[RawUnit] = []
        unit: _Unit | None = None
        has_labels = False
        for row, record in enumerate(scan.records):
            if unit is None or record.begins_unit:
                if unit is not None:
                    units.append(self._finished(unit, scan.columns))
                unit = _Unit(row, record)
            unit.add(record)
            has_labels = has_labels or record.values.get("label") is not None
            self._add_id(record)
        if unit is None:
            raise self._file.wrong("it has no rows, at least 1 is needed")
        units.append(self._finished(unit, scan.columns))
        labels = has_labels if scan.has_labels is None else scan.has_labels
        return [unit.model_copy(update={"has_labels": labels}) for unit in units]

    def _add_id(self, record: Record) -> None:
        if self.number == MOST_ROWS:
            raise self._file.wrong(f"a dataset has at most {MOST_ROWS} rows; split it in two")
        if record.problem is None:
            try:
                self._finder.add(id_of(record.values), self.number)
            except BadRow:
                pass  # The reader of the unit finds the same error, and rejects the row.
        self.number += 1

    def _finished(self, unit: "_Unit", columns: tuple[str, ...]) -> RawUnit:
        return RawUnit(
            file=self._index,
            form=self._form.name,
            first_row=unit.first_row,
            first_line=unit.first_line,
            rows=unit.rows,
            start=unit.start,
            stop=unit.stop,
            columns=columns,
            has_labels=False,
            seal=unit.seal.hexdigest(),
        )


class _Unit:
    """A unit that is being planned."""

    def __init__(self, first_row: int, first: Record) -> None:
        self.first_row, self.first_line = first_row, first.line
        self.start = self.stop = first.start
        self.rows = 0
        self.seal = blake3()

    def add(self, record: Record) -> None:
        """Add the next record."""
        self.rows += 1
        self.stop = record.stop
        self.seal.update(record.seal)
