"""Folders of raw pairs: recognise the layout of a folder, and pack its rows into webdataset tars."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cmcl.client.errors import InvalidArgument
from cmcl.client.raw_layouts import (
    FILE_NAME,
    LAYOUTS,
    Found,
    RawRow,
    Sides,
    Takes,
    check_inside,
    counted,
    noun_of,
    plural,
    unknown_layout,
)
from cmcl.contract.dataset import MOST_TEXTS_OF_ITEM, SOURCE
from cmcl.contract.modality import ModalityPair

_TAR_BYTES = 128 << 20
_LONGEST_NAME = 64
# Readers take a JSON member of 1 MiB.
_MOST_TEXT_BYTES = 512 << 10
# Progress is reported this often.
_STEP_BYTES = 4 << 20


@dataclass(frozen=True)
class RawFolder:
    """The rows of a folder, and what they are packed from.

    `layout`: the name of its layout. `missing`: files that rows name and that do not exist. `notes`: sentences about what
    else the folder has. `sizes`: bytes of each file of the rows.
    """

    folder: Path
    layout: str
    rows: list[RawRow]
    missing: list[str]
    notes: Sequence[str]
    sizes: dict[Path, int]

    @property
    def name(self) -> str:
        """Name of its tars, short enough for an upload."""
        return self.folder.name[:_LONGEST_NAME].strip() or "rows"

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        files, rows = counted(self.sizes), len(self.rows)
        if self.layout == "classes":
            classes = len({row.label for row in self.rows})
            what = f"{files} in {classes:,} {'class' if classes == 1 else 'classes'}"
        else:
            has_texts = any(isinstance(item, str) for item in self.rows[0].items.values())
            what = plural(rows, "caption" if files and has_texts else "row")
            if files:
                what = f"{files}, {what}"
            if files and rows > len(self.sizes):
                noun = noun_of(next(iter(self.sizes)))
                what += f" (about {rows / len(self.sizes):.0f} a {noun})"
        return f"{self.folder}: {what}; layout {self.layout}"


def read_raw_folder(path: Path, pair: ModalityPair, takes: Takes | None = None) -> RawFolder | None:
    """Read the rows of a folder, or of a manifest that names files; None for another file.

    `takes`: what the encoders of the modalities take; a modality that is missing is known by its name.
    Raises InvalidArgument if the layout is damaged or not known, or no row has all its files.
    """
    sides = Sides(pair, takes or {})
    if not path.is_dir():
        found = LAYOUTS["manifest"](path, sides)
        return None if found is None else _checked(path.parent, "manifest", found)
    for layout, read in LAYOUTS.items():
        found = read(path, sides)
        if found is not None:
            return _checked(path, layout, found)
    raise unknown_layout(path, sides)


def _checked(folder: Path, layout: str, found: Found) -> RawFolder:
    rows, missing = list[RawRow](), list[str]()
    sizes: dict[Path, int | None] = {}
    resolved = folder.resolve()
    for row in found.rows:
        paths = _files(row)
        for path in paths:
            if path not in sizes:
                check_inside(path, resolved)
                sizes[path] = path.stat().st_size if path.is_file() else None
        lost = [str(path) for path in paths if sizes[path] is None]
        missing += lost
        if not lost:
            rows.append(_with_source(row, folder, paths))
    if not rows:
        raise InvalidArgument(
            f"folder {folder} looks like {layout}, but has no row whose files exist"
            + (f"; the first missing file: {missing[0]}" if missing else "")
        )
    packed_sizes = {path: sizes[path] or 0 for row in rows for path in _files(row)}
    return RawFolder(folder, layout, rows, missing, found.notes, packed_sizes)


def _with_source(row: RawRow, folder: Path, paths: Sequence[Path]) -> RawRow:
    """Add the names of its files to where the user finds a row. Raises InvalidArgument for names that are not UTF-8."""
    names = [os.path.relpath(path, folder) for path in paths]
    source = ", ".join(filter(None, [row.source, *names]))
    try:
        f"{row.id}{source}".encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the name of {source!r} is not UTF-8; rename the file") from error
    return replace(row, source=source)


@dataclass(frozen=True)
class Packed:
    """A step of packing: bytes of the folder's files that are packed, and the tar if one is complete."""

    bytes: int
    tar: Path | None = None


def packed(
    raw: RawFolder, pair: ModalityPair, name: str, into: Path, most_bytes: int = _TAR_BYTES
) -> Iterator[Packed]:
    """Write the rows as tars of at most `most_bytes`, one at a time; equal rows give equal bytes.

    A sample that is larger has a tar for itself. A file with several texts is in a tar once.

    Members are `<key>.<modality>.<suffix>` and `<key>.json` with id, label, source, numbers and, if there are several,
    texts. Raises InvalidArgument for a file that cannot be read.
    """
    tar, size, count, done, reported = None, 0, 0, 0, 0
    left = dict(raw.sizes)
    for number, sample in enumerate(_samples(raw.rows)):
        members = _members(sample, pair)
        bytes_ = sum(len(content) + 1024 for content in members.values())
        if tar is not None and size + bytes_ > most_bytes:
            tar.close()
            yield Packed(done, Path(str(tar.name)))
            tar = None
        if tar is None:
            count, size = count + 1, 0
            tar = tarfile.open(  # noqa: SIM115 - closed where it is full
                into / f"{name}-{count:05d}.tar", "w", format=tarfile.USTAR_FORMAT
            )
        for suffix, content in members.items():
            member = tarfile.TarInfo(f"{number:08d}.{suffix}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        size += bytes_
        done += sum(left.pop(item, 0) for item in _files(sample[0]))
        if done - reported >= _STEP_BYTES:
            reported = done
            yield Packed(done)
    if tar is not None:
        tar.close()
        yield Packed(done, Path(str(tar.name)))


def _files(row: RawRow) -> list[Path]:
    return [item for item in row.items.values() if isinstance(item, Path)]


def _samples(rows: Sequence[RawRow]) -> list[list[RawRow]]:
    """Group rows of the same file and label that differ in a text: a sample of a tar has the file once.

    Other rows are samples of their own. Samples have the order of their first rows.
    """
    samples: list[list[RawRow]] = []
    latest: dict[tuple[object, ...], int] = {}
    sizes: list[int] = []
    for row in rows:
        texts = [item for item in row.items.values() if isinstance(item, str)]
        key = (row.label, *_files(row))
        if len(texts) != 1 or len(key) != 2:
            samples.append([row])
            sizes.append(0)
            continue
        size = sum(
            len(json.dumps(text, ensure_ascii=False).encode())
            for text in (*texts, row.id, row.source)
        )
        at = latest.get(key)
        if (
            at is None
            or len(samples[at]) == MOST_TEXTS_OF_ITEM
            or sizes[at] + size > _MOST_TEXT_BYTES
        ):
            latest[key] = len(samples)
            samples.append([row])
            sizes.append(size)
        else:
            samples[at].append(row)
            sizes[at] += size
    return samples


def _members(sample: Sequence[RawRow], pair: ModalityPair) -> dict[str, bytes]:
    """Return the members of a sample. The rows of a sample have the same file and label."""
    first = sample[0]
    sources = list(dict.fromkeys(row.source for row in sample))
    about: dict[str, object] = {
        "id": first.id if len(sample) == 1 else [row.id for row in sample],
        SOURCE: sources[0] if len(sources) == 1 else [row.source for row in sample],
    }
    if first.label is not None:
        about["label"] = first.label
    members = {}
    for modality in pair.modalities:
        item = first.items[modality]
        if isinstance(item, tuple):
            about[modality] = item
        elif isinstance(item, str):
            if len(sample) == 1:
                members[f"{modality}.txt"] = item.encode()
            else:
                about[modality] = [row.items[modality] for row in sample]
        else:
            try:
                members[f"{modality}{item.suffix.lower()}"] = item.read_bytes()
            except OSError as error:
                raise InvalidArgument(f"{item} cannot be read: {error.strerror}") from error
    members["json"] = json.dumps(about, ensure_ascii=False).encode()
    return members


def write_manifest(raw: RawFolder, target: Path) -> None:
    """Write the rows as JSONL, with the names of files relative to the manifest. Raises OSError."""
    with target.open("w", encoding="utf-8") as file:
        for row in raw.rows:
            record: dict[str, object] = {"id": row.id}
            if row.label is not None:
                record["label"] = row.label
            for modality, item in row.items.items():
                if isinstance(item, Path):
                    name = os.path.relpath(item, target.resolve().parent)
                    record[f"{modality}_{FILE_NAME}"] = Path(name).as_posix()
                else:
                    record[modality] = item
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
