"""Rows on a local disk, as records of fixed width: any of them can be read at once.

Parquet is decoded once and not once an epoch, and a block of neighbours is one read whatever row
groups the user's files have. The disk keeps room for all rows from the first on. Memory is what is
being read; the rest is the system's page cache.

Shapes: K neighbouring rows, F and G widths of the two sides.
"""

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workers.model.features import content_keys
from workers.storage.scratch import Scratch
from workers.train.rows.reader import RawRows


@dataclass(frozen=True)
class Records:
    """Rows of both sides as they are stored (float16 or float32), and their content keys (int64)."""

    first_KF: np.ndarray
    second_KG: np.ndarray
    keys_K2: np.ndarray

    def __len__(self) -> int:
        return len(self.keys_K2)

    def at(self, index: np.ndarray | slice) -> "Records":
        """Some of the rows."""
        return Records(self.first_KF[index], self.second_KG[index], self.keys_K2[index])


def keyed(raw: RawRows) -> Records:
    """Rows with their content keys."""
    keys = [content_keys(side).numpy() for side in (raw.first_BF, raw.second_BG)]
    return Records(raw.first_BF, raw.second_BG, np.stack(keys, axis=1))


def joined(parts: Sequence[Records]) -> Records:
    """One after the other; float16 beside float32 becomes float32."""
    return Records(
        np.concatenate([part.first_KF for part in parts]),
        np.concatenate([part.second_KG for part in parts]),
        np.concatenate([part.keys_K2 for part in parts]),
    )


def regrouped(parts: Iterable[Records], rows: int) -> Iterator[Records]:
    """The same rows, at least so many together, but for the last ones."""
    waiting: list[Records] = []
    for part in parts:
        waiting.append(part)
        if sum(map(len, waiting)) >= rows:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


@dataclass
class _Segment:
    """Neighbouring rows of one type of record: the first one's number, and its place in the file."""

    record: np.dtype
    start: int
    stop: int
    offset: int


class Spool:
    """Rows `start` to `stop` of a dataset; they are appended in their order and read in any."""

    def __init__(self, start: int, stop: int, scratch: Scratch) -> None:
        self._next, self._stop, self._bytes = start, stop, 0
        self._file = scratch.new_file()
        # Nobody closes one whose reading failed.
        weakref.finalize(self, self._file.close)
        self._segments: list[_Segment] = []

    @property
    def is_full(self) -> bool:
        """All rows are there."""
        return self._next == self._stop

    def close(self) -> None:
        """Its room on the disk is free again."""
        self._file.close()

    def append(self, records: Records) -> None:
        """The next rows. Raises StorageUnavailable where the disk has no room for all of them."""
        packed = _packed(records)
        if not self._segments or self._segments[-1].record != packed.dtype:
            rows = self._stop - self._next
            self._file.reserve(self._bytes + rows * packed.dtype.itemsize)
            self._segments.append(_Segment(packed.dtype, self._next, self._next, self._bytes))
        self._write(memoryview(packed.data).cast("B"))
        self._next += len(packed)
        self._segments[-1].stop = self._next

    def read(self, start: int, stop: int) -> Records:
        """These rows."""
        parts = []
        for segment in self._segments:
            first, last = max(start, segment.start), min(stop, segment.stop)
            if first < last:
                parts.append(self._read(segment, first, last))
        return parts[0] if len(parts) == 1 else joined(parts)

    def _read(self, segment: _Segment, start: int, stop: int) -> Records:
        records = np.empty(stop - start, segment.record)
        place = segment.offset + (start - segment.start) * segment.record.itemsize
        read = os.preadv(self._file.fileno(), [records.data], place)
        if read != records.nbytes:
            raise OSError(f"{read} of {records.nbytes} bytes came from the local disk")
        return Records(records["first"], records["second"], records["keys"])

    def _write(self, data: memoryview) -> None:
        while data:
            written = os.pwrite(self._file.fileno(), data, self._bytes)
            data, self._bytes = data[written:], self._bytes + written


def _packed(records: Records) -> np.ndarray:
    first_KF, second_KG = records.first_KF, records.second_KG
    record = np.dtype(
        [
            ("first", first_KF.dtype, first_KF.shape[1:]),
            ("second", second_KG.dtype, second_KG.shape[1:]),
            ("keys", np.int64, (2,)),
        ]
    )
    packed = np.empty(len(records), record)
    packed["first"], packed["second"], packed["keys"] = first_KF, second_KG, records.keys_K2
    return packed
