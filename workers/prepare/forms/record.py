"""Files with raw rows, their records, and how the values of a record become an id, a label and two items.

The raw bytes of an item do not depend on the form of the file: texts are UTF-8, numbers are float64 and features are
float32, little endian. Therefore equal rows have equal digests.
"""

import hashlib
import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import orjson

from cmcl.contract.dataset import ShardRef
from cmcl.contract.errors import InvalidDataset, InvalidUri, ObjectNotFound
from cmcl.storage.object_store import ObjectStore, retry_unavailable
from cmcl.storage.uris import locate, locate_allowed, open_store
from workers.files.columns import LONGEST_TEXT, wrong_values
from workers.files.shards import pieces
from workers.prepare.units import ROWS_IN_A_UNIT, RawForm, RawUnit, SideSpec

# Files in object storage, read by ranges: files of a dataset, and files that its rows name.
_BUFFER_BYTES = 1 << 20
# Others have "//" behind their colon.
_SCHEMES = ("file:", "s3:", "data:", "upload:")


class Locator:
    """Finds objects by address. Thread-safe; each store is opened once.

    `allowed`: permitted prefixes of addresses. `locations`: addresses of uploads in our own store.
    """

    def __init__(self, allowed: tuple[str, ...], locations: Mapping[str, str]) -> None:
        self._allowed, self._locations = allowed, locations
        self._opened = cache(open_store)

    def locate(self, uri: str) -> tuple[ObjectStore, str]:
        """Return the store and key of an address. Raises InvalidUri if it is not permitted."""
        location = self._locations.get(uri)
        if location is not None:
            return locate(location)
        return locate_allowed(uri, self._allowed, self._opened)

    def beside(self, file: str, name: str) -> str:
        """Return the address of a file that a row of `file` names: relative to `file`, or absolute.

        Raises InvalidUri for an absolute path, a name with `..`, and a name relative to an upload. `locate` checks
        other addresses.
        """
        if name in self._locations or "://" in name or name.startswith(_SCHEMES):
            return name
        if name.startswith("/"):
            raise InvalidUri(
                f"{name!r} is an absolute path: write file:///path, or a relative name"
            )
        if file in self._locations:
            raise InvalidUri(
                f"{name!r} is relative to an upload, which has no folder: write its address"
            )
        parts = [part for part in name.split("/") if part != "."]
        if ".." in parts:
            raise InvalidUri(f"{name!r} has '..': name files below the folder of the manifest")
        folder = file.rpartition("/")[0]
        plain = "/".join(parts)
        return f"{folder}/{quote(plain) if file.startswith('file:') else plain}"


class StoredFile:
    """A file of a dataset. Failed requests are retried.

    Its size is read once, and bytes that are added later are ignored. Raises InvalidDataset if the file does not
    exist or becomes shorter; InvalidUri; StorageUnavailable.
    """

    def __init__(self, ref: ShardRef, locator: Locator) -> None:
        self.ref, self.uri = ref, ref.uri
        self._store, self._key = locator.locate(ref.uri)
        try:
            self.size = retry_unavailable(partial(self._store.size, self._key))
        except ObjectNotFound as error:
            raise self.wrong("there is no such object") from error
        if not self.size:
            raise self.wrong("it is empty")

    def wrong(self, what: str) -> InvalidDataset:
        """Return an InvalidDataset error that names this file."""
        return InvalidDataset(f"{self.uri}: {what}")

    def changed(self) -> InvalidDataset:
        """Return the error of a file that has changed since it was planned."""
        return self.wrong("it changed while it was read; send the dataset again")

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop` or the end of the file."""
        stop = min(stop, self.size)
        if stop <= start:
            return b""
        try:
            data = retry_unavailable(partial(self._store.read_range, self._key, start, stop))
        except ObjectNotFound as error:
            raise self.changed() from error
        if len(data) != stop - start:
            raise self.changed()
        return data

    def check_digest(self) -> None:
        """Check the digest that the user gave, if any; reads all bytes. Raises InvalidDataset."""
        if self.ref.sha256 is None:
            return
        digest, left = hashlib.sha256(), self.size
        try:
            for piece in pieces(self._store, self._key, self.size):
                left -= len(piece)
                digest.update(piece)
        except ObjectNotFound as error:
            raise self.changed() from error
        if left:
            raise self.changed()
        self.compare_digest(digest.hexdigest())

    def compare_digest(self, found: str) -> None:
        """Raises InvalidDataset if the user gave another digest."""
        if self.ref.sha256 not in (None, found):
            raise self.wrong(f"its SHA-256 is {found}, expected {self.ref.sha256}")

    def opened(self) -> "OpenedFile":
        """Return a file object for reading by position."""
        return OpenedFile(self)

    def buffered(self, size: int = _BUFFER_BYTES) -> io.BufferedReader:
        """Return a buffered file object for small reads."""
        return io.BufferedReader(self.opened(), size)


class OpenedFile(io.RawIOBase):
    """A file that is read by position. Bytes that are read from first to last are digested on the way."""

    def __init__(self, file: StoredFile) -> None:
        super().__init__()
        self._file, self._place = file, 0
        self._digest, self._digested = hashlib.sha256(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        data = self._file.read_range(self._place, self._place + len(view))
        view[: len(data)] = data
        if self._place == self._digested and self._file.ref.sha256 is not None:
            self._digest.update(data)
            self._digested += len(data)
        self._place += len(data)
        return len(data)

    def check_digest(self) -> None:
        """Check the digest that the user gave, if any. Call it when all bytes were read in order.

        Raises InvalidDataset.
        """
        if self._file.ref.sha256 is not None:
            self._file.compare_digest(self._digest.hexdigest())


# Longer records are refused. Larger items must be in separate files.
LONGEST_RECORD = 64 << 20
_BYTES_IN_A_UNIT = 256 << 20
_MOST_SPOOLED = 16 << 30

Sides = tuple[SideSpec, SideSpec]

_SEPARATORS = re.compile(r"[\s,;]+")
# Bytes of raw numbers, before they are counted.
_LONGEST_NUMBERS = 1 << 20
_SIMILAR = 0.75
# Columns are checked in this many first records.
_FIRST_RECORDS = 100
_LONGEST_LIST = 30


class BadRow(ValueError):
    """A row that cannot be used. The message is the reason, for the user."""


@dataclass(frozen=True)
class FileName:
    """An item in a separate file. `name`: its name or address, as in the row."""

    name: str


@dataclass(frozen=True)
class Member:
    """An item in a member of the tar: `size` bytes from `offset`."""

    offset: int
    size: int


RawItem = bytes | FileName | Member


class Record(NamedTuple):
    """One record of a file.

    `start`, `stop`: its bytes. `values` by column: text as str or bytes, numbers as a list or array,
    media as bytes or Member; missing ones are absent or None. `problem`: why it cannot be read.
    `seal`: bytes that differ if the record changes. `begins_unit`: whether a unit begins with it; set when
    a file is planned. `line`: the number of its line, in forms of lines. `source`: where the user finds it, in tars.
    """

    start: int
    stop: int
    values: Mapping[str, Any]
    seal: bytes
    problem: str | None = None
    begins_unit: bool = False
    line: int = 0
    source: str = ""


@dataclass(frozen=True)
class Form:
    """One form of files, such as CSV.

    `scan` yields all records of a file, with at least their `id` and `label`; `columns` of a CSV header. It
    raises InvalidDataset if the file cannot be used as a whole. `read` yields the records of a unit.
    """

    name: RawForm
    scan: Callable[[StoredFile, Sides], "Scan"]
    read: Callable[[StoredFile, RawUnit, Sides], Iterator[Record]]


@dataclass(frozen=True)
class Scan:
    """All records of a file. `has_labels`: None if it is known only after all records are read."""

    records: Iterator[Record]
    columns: tuple[str, ...] = ()
    has_labels: bool | None = None


class UnitCutter:
    """Decides where units begin: after a number of rows or bytes, so that the raw items of a unit fit on the disk."""

    def __init__(self, sides: Sides) -> None:
        largest = sum(
            side.encoder.max_item_bytes
            for side in sides
            if side.encoder is not None and side.encoder.takes != "numbers"
        )
        self.most_rows = max(1, min(ROWS_IN_A_UNIT, _MOST_SPOOLED // max(1, largest)))
        self._rows = self._bytes = 0

    def begins(self, size: int, rows: int = 1) -> bool:
        """Return whether the next record, or the next records that must stay together, begin a unit.

        `size`: their bytes. `rows`: their number.
        """
        is_full = self._rows + rows > self.most_rows or self._bytes + size > _BYTES_IN_A_UNIT
        begins = self._rows == 0 or is_full
        if begins:
            self._rows = self._bytes = 0
        self._rows += rows
        self._bytes += size
        return begins

    def rows_of(self, bytes_per_row: float) -> int:
        """Return the number of rows of a unit whose rows have about this size."""
        return max(1, min(self.most_rows, int(_BYTES_IN_A_UNIT / max(1.0, bytes_per_row))))


def check_columns(
    found: Collection[str], sides: Sides, file: StoredFile, media_inline: bool, of: str = "column"
) -> None:
    """Check that a file has an id and both sides. `media_inline`: whether columns can hold bytes of media."""
    if "id" not in found:
        raise file.wrong(f"{of} 'id' is missing; {_listed(found)}{_meant('id', found)}")
    for side in sides:
        names = columns_of(side, media_inline)
        if not any(name in found for name in names):
            raise file.wrong(
                f"it has no {of} for {side.modality}: {_wanted(side, names)}; {_listed(found)}"
                f"{_meant(names, found)}"
            )
    if "label" not in found and (like := get_close_matches("label", found, 1, _SIMILAR)):
        raise file.wrong(
            f"{of} {like[0]!r} looks like 'label'; rename it, or leave it out if it is none"
        )


class ColumnCheck:
    """Checks the columns of the first records of a file, whose records may have different ones."""

    def __init__(self, sides: Sides, file: StoredFile, media_inline: bool, of: str) -> None:
        self._check = partial(
            check_columns, sides=sides, file=file, media_inline=media_inline, of=of
        )
        self._found: dict[str, None] = {}
        self._left = _FIRST_RECORDS

    def add(self, names: Iterable[str]) -> None:
        """Add the columns of a record that can be read. Raises InvalidDataset."""
        if self._left:
            self._found.update(dict.fromkeys(names))
            self._left -= 1
            if not self._left:
                self._check(self._found)

    def end(self) -> None:
        """Check a file of few records. Raises InvalidDataset."""
        if self._found and self._left:
            self._check(self._found)


def columns_of(side: SideSpec, media_inline: bool) -> tuple[str, ...]:
    """Return the names of columns that can hold one side."""
    named = f"{side.modality}_file_name"
    if side.encoder is None or side.encoder.takes == "numbers":
        return (side.modality,)
    if side.encoder.takes == "text" or media_inline:
        return (side.modality, named)
    return (named,)


def known_columns(sides: Sides) -> tuple[str, ...]:
    """Return all columns that are read, of any form."""
    of_sides = (name for side in sides for name in columns_of(side, media_inline=True))
    return ("id", "label", *of_sides)


def _wanted(side: SideSpec, names: Iterable[str]) -> str:
    """Describe what the columns must hold."""
    listed = " or ".join(repr(name) for name in names)
    if side.encoder is None:
        return (
            f"it has no encoder, so {listed} must hold its features, lists of {side.width} numbers"
        )
    if side.encoder.takes == "numbers":
        return f"{listed} must hold lists of numbers"
    if side.encoder.takes == "text":
        return f"{listed} must hold texts or names of files"
    return f"{listed} must hold {side.encoder.takes} files"


def _listed(found: Collection[str]) -> str:
    """List the columns of the file."""
    names = [str(name)[:100] for name in list(found)[:_LONGEST_LIST]]
    more = "" if len(found) <= _LONGEST_LIST else f" and {len(found) - _LONGEST_LIST} more"
    return f"found {names}{more}"


def _meant(wanted: str | Iterable[str], found: Collection[str]) -> str:
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    for name in names:
        if like := get_close_matches(name, [str(each) for each in found], 1, _SIMILAR):
            return f"; was {like[0]!r} meant to be {name!r}?"
    return ""


def id_of(values: Mapping[str, Any]) -> str:
    """Return the id as text. Raises BadRow."""
    value = values.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _short_text(value, "id")


def label_of(values: Mapping[str, Any], has_labels: bool) -> str | None:
    """Return the label; None in a file without labels. Raises BadRow."""
    if not has_labels:
        return None
    if values.get("label") is None:
        raise BadRow(
            "it has no label, and other rows of the file have one: label all rows, or none"
        )
    return _short_text(values["label"], "label")


def item_of(values: Mapping[str, Any], side: SideSpec) -> RawItem:
    """Return one item: its raw bytes, or where they are. Raises BadRow."""
    inline, name = values.get(side.modality), None
    if not _is_numbers(side):
        name = values.get(f"{side.modality}_file_name")
    if inline is not None and name is not None:
        raise BadRow(f"it has both {side.modality} and {side.modality}_file_name")
    if name is not None:
        return FileName(_text(name, f"{side.modality}_file_name"))
    if inline is None:
        raise BadRow(f"it has no {side.modality}")
    return inline if isinstance(inline, Member) else _inline(inline, side)


def _inline(inline: object, side: SideSpec) -> bytes:
    if side.encoder is None or _is_numbers(side):
        return _numbers(inline, side)
    if side.encoder.takes == "text":
        return _checked_bytes(_text(inline, side.modality).encode(), side)
    if not isinstance(inline, bytes):
        raise BadRow(
            f"its {side.modality} must be a file: write its name into {side.modality}_file_name"
        )
    return _checked_bytes(inline, side)


def item_in_file(data: bytes, side: SideSpec) -> bytes:
    """Return the raw bytes of an item from the content of its file or member. Raises BadRow."""
    if side.encoder is None or _is_numbers(side):
        try:
            return _numbers(orjson.loads(data), side)
        except orjson.JSONDecodeError as error:
            raise BadRow(f"its {side.modality} is not JSON: {error}") from error
    if side.encoder.takes == "text":
        # Editors write a line end, and some a byte order mark; neither is part of the text.
        data = data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
        _text(data, side.modality)
    return _checked_bytes(data, side)


def _checked_bytes(data: bytes, side: SideSpec) -> bytes:
    """Check the size of an item, and that a text has characters. Raises BadRow."""
    if side.encoder is None:
        return data
    if not data or (side.encoder.takes == "text" and not data.strip()):
        raise BadRow(f"its {side.modality} is empty")
    check_size(len(data), side)
    return data


def check_size(size: int, side: SideSpec) -> None:
    """Raises BadRow if an item of `size` bytes is too large."""
    most = largest(side)
    if size > most:
        raise BadRow(
            f"its {side.modality} has {'more than ' if size == most + 1 else ''}"
            f"{min(size, most) if size == most + 1 else size} bytes; at most {most} are permitted"
        )


def largest(side: SideSpec) -> int:
    """Return the permitted size of an item in bytes."""
    return _LONGEST_NUMBERS if side.encoder is None else side.encoder.max_item_bytes


def _is_numbers(side: SideSpec) -> bool:
    """Return whether items are lists of numbers: for an encoder, or features."""
    return side.encoder is None or side.encoder.takes == "numbers"


def _short_text(value: object, what: str) -> str:
    if value is None or value in ("", b""):
        raise BadRow(f"it has no {what}")
    text = _text(value, what)
    size = len(text.encode())
    if size > LONGEST_TEXT:
        raise BadRow(f"its {what} has {size} bytes; at most {LONGEST_TEXT} are permitted")
    return text


def _text(value: object, what: str) -> str:
    try:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeDecodeError as error:
        raise BadRow(f"its {what} is not UTF-8: byte {error.start} is invalid") from error
    except UnicodeEncodeError as error:  # bytes of CSV that are not UTF-8 became surrogates
        raise BadRow(f"its {what} is not UTF-8: character {error.start} is invalid") from error
    raise BadRow(f"its {what} must be text, is {_kind(value)}")


def _numbers(value: object, side: SideSpec) -> bytes:
    """Return the bytes of a list of numbers, or of text with numbers or a JSON list."""
    if isinstance(value, str | bytes):
        value = _parsed(_text(value, side.modality), side)
    if not isinstance(value, list | np.ndarray):
        raise BadRow(f"its {side.modality} must be a list of numbers, is {_kind(value)}")
    if isinstance(value, list):
        wrong = next((each for each in value if type(each) not in (int, float)), None)
        if wrong is not None or None in value:
            raise BadRow(f"its {side.modality} has {_kind(wrong)} among the numbers")
    if not len(value):
        raise BadRow(f"its {side.modality} has no numbers")
    if side.encoder is None:
        return _feature(value, side)
    with np.errstate(over="ignore"):
        # Adding zero turns -0.0 into 0.0: equal values have equal bytes.
        numbers = np.asarray(value, "<f8") + 0.0
    if not np.isfinite(numbers).all():
        raise BadRow(f"its {side.modality} has NaN or infinity")
    check_size(numbers.nbytes, side)
    return numbers.tobytes()


def _feature(value: "list[float] | np.ndarray", side: SideSpec) -> bytes:
    if len(value) != side.width:
        raise BadRow(
            f"its {side.modality} has {len(value)} numbers, the model declares {side.width}"
        )
    with np.errstate(over="ignore"):
        feature_F = np.asarray(value, "<f8").astype("<f4") + np.float32(0)
    for _, found, permitted in wrong_values(feature_F[None]):
        raise BadRow(f"its {side.modality} {found}{permitted}")
    return feature_F.tobytes()


def _parsed(text: str, side: SideSpec) -> object:
    """Parse numbers in text, as in CSV: `48.86 2.35`, `48.86,2.35` or `[48.86, 2.35]`."""
    text = text.strip()
    if len(text) > _LONGEST_NUMBERS:
        raise BadRow(f"its {side.modality} has {len(text)} characters, at most {_LONGEST_NUMBERS}")
    try:
        if text.startswith("["):
            return orjson.loads(text)
        return [float(part) for part in _SEPARATORS.split(text) if part]
    except ValueError as error:
        raise BadRow(f"its {side.modality} is no list of numbers: {text[:100]!r}") from error


def _kind(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "text"}
    names |= {"int": "a number", "float": "a number", "bool": "a truth value", "bytes": "bytes"}
    return names.get(type(value).__name__, type(value).__name__)
