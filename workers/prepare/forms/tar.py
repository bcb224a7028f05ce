"""webdataset tar: members `<key>.<modality>.<extension>` or `<key>.<extension>`, keys contiguous.

`<key>.json` may hold `id`, `label`, texts and numbers; by default the key is the id. A list of texts gives a row for
each text, all with the same other item; their ids are those of a list `id`, or `<id>#1`, `<id>#2`, ... Only regular
members are read: a row with a link, a device or a name that leaves the archive is rejected.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any

import orjson

from cmcl.contract.dataset import MOST_TEXTS_OF_ITEM, SOURCE
from workers.prepare.forms.record import (
    BadRow,
    ColumnCheck,
    Form,
    Member,
    Record,
    Scan,
    Sides,
    StoredFile,
    UnitCutter,
    id_of,
)
from workers.prepare.units import RawUnit, SideSpec

MAGIC_OFFSET, MAGIC = 257, b"ustar"
_NAME = re.compile(r"((?:.*/)?[^/.][^/.]*)\.([^/]+)", re.DOTALL)
_BLOCK = 512
_LARGEST_JSON = 1 << 20
_EXTENSIONS: dict[str, tuple[str, ...]] = {
    "text": ("txt",),
    "image": ("jpg", "jpeg", "png", "webp", "gif", "bmp"),
    "audio": ("wav", "flac", "ogg", "mp3", "m4a"),
    "video": ("mp4", "webm", "mkv", "mov"),
    "numbers": ("json",),
}
_MEDIA = {extension: media for media, all_ in _EXTENSIONS.items() for extension in all_}


@dataclass
class _Sample:
    """The members of one key so far. `first`: the name of the first one."""

    key: str
    first: str
    start: int
    stop: int
    values: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] | None = None
    names: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    seal: list[str] = field(default_factory=list)
    problem: str | None = None

    def refuse(self, problem: str) -> None:
        """Reject the row. The first problem counts."""
        self.problem = self.problem or problem

    def add(self, column: str, name: str, member: Member) -> None:
        """Add a member that is one side of the row."""
        if column in self.names:
            self.refuse(f"members {self.names[column]!r} and {name!r} are both its {column}")
        self.names[column] = name
        self.values[column] = member

    def records(self, sides: Sides, tar: str) -> list[Record]:
        """Return the record of the members, or one for each text if the JSON has a list of texts. `tar`: its name."""
        given = self.given or {}
        source = given.get(SOURCE)
        place = source if isinstance(source, str) else f"{tar}, {self.first}"
        for column in given.keys() & self.values.keys():
            self.refuse(f"its {column} is in member {self.names[column]!r} and in its JSON as well")
        values = {"id": self.key, **given, **self.values}
        if self.others and not (self.values or self.given):
            self.refuse(f"none of its members {self.others[:5]} is of the pair")
        seal = "\0".join(self.seal).encode(errors="surrogateescape")
        record = Record(self.start, self.stop, values, seal, self.problem, source=place)
        lists = [
            side.modality
            for side in sides
            if side.encoder is not None
            and side.encoder.takes == "text"
            and isinstance(values.get(side.modality), list)
        ]
        if not lists or self.problem is not None:
            return [record]
        try:
            rows = [record._replace(values=values | row) for row in _rows_of_texts(values, lists)]
        except BadRow as error:
            return [record._replace(values=values | {"id": self.key}, problem=str(error))]
        if isinstance(source, list) and len(source) == len(rows):
            rows = [row._replace(source=str(each)) for row, each in zip(rows, source, strict=True)]
        return rows


def _rows_of_texts(values: dict[str, Any], lists: list[str]) -> list[dict[str, Any]]:
    """Return id and text of each row of a sample with a list of texts. Raises BadRow."""
    if len(lists) > 1:
        raise BadRow(f"its {lists[0]} and its {lists[1]} are both lists; only one can be")
    texts, ids = values[lists[0]], values["id"]
    if not 0 < len(texts) <= MOST_TEXTS_OF_ITEM:
        raise BadRow(
            f"its {lists[0]} is a list of {len(texts)} texts; 1 to {MOST_TEXTS_OF_ITEM} are permitted"
        )
    if not isinstance(ids, list):
        ids = [f"{id_of(values)}#{number}" for number in range(1, len(texts) + 1)]
    if len(ids) != len(texts):
        raise BadRow(f"its id is a list of {len(ids)}, and its {lists[0]} one of {len(texts)}")
    return [{"id": id_, lists[0]: text} for id_, text in zip(ids, texts, strict=True)]


def _samples(file: StoredFile, start: int, stop: int | None, sides: Sides) -> Iterator[_Sample]:
    """Yield the samples of a tar from byte `start` to `stop`; None: to its end, which is checked."""
    current: _Sample | None = None
    buffered = file.buffered()
    for member in _members(file, buffered, start, stop):
        if member.isdir():
            continue
        name = member.name.removeprefix("./")
        match = _NAME.fullmatch(name)
        if match is None:
            _check_other(file, member)
            continue
        key, rest = match.groups()
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = _Sample(key, name, member.offset, end)
        current.stop = end
        current.seal.append(f"{name}\0{member.offset_data}\0{member.size}")
        _add(current, member, rest, file, sides)
    if current is not None:
        yield current


def _members(
    file: StoredFile, buffered: BufferedReader, start: int, stop: int | None
) -> Iterator[tarfile.TarInfo]:
    buffered.seek(start)
    try:
        with tarfile.TarFile(fileobj=buffered, errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                if stop is not None and member.offset >= stop:
                    return
                # `tarfile` keeps a list of all members, which would grow with the file.
                tar.members.clear()  # type: ignore[attr-defined]
                yield member
            if stop is None:
                _check_end(file, tar.offset)
    except (tarfile.TarError, ValueError) as error:
        raise file.wrong(f"it cannot be read as tar: {error}") from error


def _check_end(file: StoredFile, offset: int) -> None:
    """Check that the tar is complete: `tarfile` stops at a damaged header as it does at the end."""
    block = file.read_range(offset, offset + _BLOCK)
    if len(block) < _BLOCK:
        raise file.wrong("it does not end as tar does; it was perhaps cut off")
    if block.strip(b"\0"):
        raise file.wrong(f"it is damaged: byte {offset} does not begin a header of tar")


def _check_other(file: StoredFile, member: tarfile.TarInfo) -> None:
    """Check a member without a key, which belongs to no row. Raises InvalidDataset unless it is a regular file."""
    if (problem := _danger(member)) is not None:
        raise file.wrong(
            f"{problem}; members are named <key>.<extension>, and this one has no key whose row could be "
            "left out"
        )


def _danger(member: tarfile.TarInfo) -> str | None:
    """Return why a member is not read; None if it is."""
    name = member.name
    if member.issym() or member.islnk():
        return f"member {name!r} is a link"
    if not member.isreg() or member.issparse():
        return f"member {name!r} is no regular file"
    if name.startswith("/") or ".." in name.split("/"):
        return f"member {name!r} leaves the archive"
    return None


def _add(
    sample: _Sample, member: tarfile.TarInfo, rest: str, file: StoredFile, sides: Sides
) -> None:
    if (problem := _danger(member)) is not None:
        sample.refuse(problem)
        return
    rest = rest.lower()
    if rest == "json":
        if sample.given is not None:
            sample.refuse(f"member {member.name!r} is there more than once")
        sample.given = _json(sample, member, file)
        return
    modality, _, extension = rest.rpartition(".")
    chosen = [side for side in sides if _holds(side, modality, extension)]
    if not chosen:
        sample.others.append(member.name[:200])
    elif len(chosen) > 1:
        sample.refuse(
            f"member {member.name!r} can be of both sides: name members <key>.<modality>.{extension}"
        )
    else:
        sample.add(chosen[0].modality, member.name, Member(member.offset_data, member.size))


def _holds(side: SideSpec, modality: str, extension: str) -> bool:
    """Return whether a member can be that side of its row."""
    takes = "numbers" if side.encoder is None else side.encoder.takes
    if modality:
        return modality == side.modality and extension in _EXTENSIONS[takes]
    return _MEDIA.get(extension) == takes


def _json(sample: _Sample, member: tarfile.TarInfo, file: StoredFile) -> dict[str, Any]:
    if member.size > _LARGEST_JSON:
        sample.refuse(f"member {member.name!r} has {member.size} bytes; at most {_LARGEST_JSON}")
        return {}
    data = file.read_range(member.offset_data, member.offset_data + member.size)
    sample.seal.append(data.decode(errors="replace"))
    try:
        values = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        sample.refuse(f"member {member.name!r} is not JSON: {error}")
        return {}
    if not isinstance(values, dict):
        sample.refuse(f"member {member.name!r} is not a JSON object")
        return {}
    return values


def _scan(file: StoredFile, sides: Sides) -> Scan:
    file.check_digest()
    return Scan(_scanned(file, sides))


def _scanned(file: StoredFile, sides: Sides) -> Iterator[Record]:
    cutter, check = UnitCutter(sides), ColumnCheck(sides, file, media_inline=True, of="member")
    for sample in _samples(file, 0, None, sides):
        first, *others = records = sample.records(sides, file.ref.file_name)
        # A sample with a problem is rejected later. Its members do not show what the other samples have.
        if sample.problem is None:
            check.add((*first.values, *sample.others[:1]))
        begins = cutter.begins(sample.stop - sample.start, len(records))
        yield first._replace(begins_unit=begins)
        yield from others
    check.end()


def _read(file: StoredFile, unit: RawUnit, sides: Sides) -> Iterator[Record]:
    for sample in _samples(file, unit.start, unit.stop, sides):
        yield from sample.records(sides, file.ref.file_name)


TAR = Form("tar", _scan, _read)
