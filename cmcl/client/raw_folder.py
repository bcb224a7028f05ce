"""Folders of raw pairs: recognise the layout of a folder, and pack its rows into webdataset tars.

A row has two items, each a text, numbers or a file. Files with names that begin with a dot are not read, and a file
outside of the folder is refused. The first layout that fits is used:

manifest        metadata.jsonl, metadata.csv, manifest.jsonl or manifest.csv: columns id, label, <modality>, <modality>_file_name, file_name
captions        a file and a text of the same name: a.jpg, a.txt; each line of the text is a caption
classes         a folder for each class, whose name is the text and the label
"""

import csv
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from cmcl.client.errors import InvalidArgument
from cmcl.contract.dataset import MANIFESTS, MOST_TEXTS_OF_ITEM, SOURCE, SUFFIXES, TEXT_NAMES
from cmcl.contract.modality import ModalityPair

_NOUNS = {"image": "picture", "audio": "sound", "video": "video", "text": "text"}
MEDIA_SUFFIXES = frozenset(
    suffix for kind, suffixes in SUFFIXES.items() if kind != "text" for suffix in suffixes
)
FILE_NAME = "file_name"
# Names in a sentence about files; the others are counted.
_NAMED = 3

Item = str | Path | tuple[float, ...]
# What the encoders of modalities take, as far as they are known.
Takes = Mapping[str, str]


@dataclass(frozen=True)
class RawRow:
    """One pair. A path is a file whose bytes are the item. `source`: where the user finds the row in the folder."""

    id: str
    label: str | None
    items: Mapping[str, Item]
    source: str


@dataclass(frozen=True)
class Found:
    """The rows of a folder, and sentences about what else it has."""

    rows: Iterable[RawRow]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Sides:
    """A pair, and what the encoders of its modalities take. A modality without an encoder is known by its name."""

    pair: ModalityPair
    takes: Takes

    @property
    def text(self) -> str:
        """The modality of the texts. Raises InvalidArgument unless it is exactly one of the two."""
        texts = [
            name
            for name in self.pair.modalities
            if self.takes.get(name, "text" if name in TEXT_NAMES else None) == "text"
        ]
        if len(texts) != 1:
            permitted = ", ".join(TEXT_NAMES)
            raise InvalidArgument(
                f"pair {self.pair}: which side is the text? One of them must have an encoder of texts or be "
                f"called {permitted}; or write a manifest (docs/datasets.md)"
            )
        return texts[0]

    @property
    def files(self) -> str:
        """The other modality, whose items are files."""
        return self.pair.first if self.text == self.pair.second else self.pair.second

    @property
    def kind(self) -> str | None:
        """What the modality of the files takes; None if that is not known."""
        named: Takes = {kind: kind for kind in SUFFIXES}
        return self.takes.get(self.files, named.get(self.files))

    def chosen(self, paths: Iterable[Path]) -> list[Path]:
        """Return the pictures, sounds or videos that the modality of the files takes. Raises InvalidArgument."""
        media = [path for path in paths if path.suffix.lower() in MEDIA_SUFFIXES]
        kind = self.kind
        if kind is None and len({kind_of(path) for path in media}) > 1:
            raise InvalidArgument(
                f"there are {counted(media)}: which of them does modality {self.files!r} take? Bind it to an "
                "encoder, or write a manifest (docs/datasets.md)"
            )
        suffixes = MEDIA_SUFFIXES if kind is None else frozenset(SUFFIXES.get(kind, ()))
        return [path for path in media if path.suffix.lower() in suffixes]


def kind_of(path: Path) -> str | None:
    """Return what a file is, by its suffix."""
    suffix = path.suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def plural(number: int, noun: str) -> str:
    """Format a number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def noun_of(path: Path) -> str:
    """Return the word for a file, by its suffix."""
    return _NOUNS.get(kind_of(path) or "", "file")


def counted(paths: Iterable[Path]) -> str:
    """Count files by what they are: `951 pictures, 2 sounds`."""
    return ", ".join(plural(number, noun) for noun, number in Counter(map(noun_of, paths)).items())


def _left_out(notes: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return a sentence for each reason why files are left out, with their number and the first names."""
    return [
        f"left out: {counted(paths)}{why} ({', '.join(path.name for path in paths[:_NAMED])}"
        + (f" and {len(paths) - _NAMED:,} more)" if len(paths) > _NAMED else ")")
        for why, paths in notes.items()
        if paths
    ]


def _manifest(path: Path, sides: Sides) -> Found | None:
    if path.is_dir():
        file = next((path / name for name in MANIFESTS if (path / name).is_file()), None)
    else:
        file = path if path.suffix.lower() in (".jsonl", ".csv") and _names_files(path) else None
    return None if file is None else Found(_manifest_rows(file, sides.pair))


def _names_files(path: Path) -> bool:
    """Return whether the first row of a manifest has a column that names files."""
    _, first = next(iter(manifest_records(path)), (0, {}))
    return any(name == FILE_NAME or name.endswith(f"_{FILE_NAME}") for name in first)


def _manifest_rows(file: Path, pair: ModalityPair) -> Iterator[RawRow]:
    for line, record in manifest_records(file):
        items: dict[str, Item] = {}
        for modality in pair.modalities:
            name = record.get(f"{modality}_{FILE_NAME}")
            if name is None and record.get(modality) is None:
                # The convention of Hugging Face: the one file of a row, and a column of texts.
                name = record.get(FILE_NAME)
            value = record.get(modality) if name is None else file.parent / str(name)
            if value is None:
                raise InvalidArgument(
                    f"{file}, line {line}: no column {modality!r} or '{modality}_{FILE_NAME}'; it has "
                    f"{', '.join(map(repr, record))}"
                )
            items[modality] = value if isinstance(value, Path) else _item(value, file, line)
        label = record.get("label")
        yield RawRow(
            str(record.get("id", f"{file.name}:{line}")),
            None if label in (None, "") else str(label),
            items,
            f"{file.name} line {line}",
        )


def _item(value: object, file: Path, line: int) -> Item:
    """Return a text, or numbers: a list, in CSV written as JSON. Raises InvalidArgument."""
    given = value
    if isinstance(value, str) and value.startswith("[") and file.suffix.lower() == ".csv":
        try:
            given = json.loads(value)
        except ValueError:
            return value
    if isinstance(given, list) and all(isinstance(each, int | float) for each in given):
        return tuple(float(each) for each in given)
    if isinstance(value, list | dict):
        raise InvalidArgument(
            f"{file}, line {line}: {value!r} is neither a text nor a list of numbers"
        )
    return str(value)


def manifest_records(file: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the rows of a JSONL or CSV file, each with the number of its line. Raises InvalidArgument."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if file.suffix.lower() == ".csv":
                yield from _csv_records(file, opened)
                return
            for number, line in enumerate(opened, start=1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InvalidArgument(f"{file}, line {number}: a row must be a JSON object")
                yield number, record
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidArgument(f"{file} cannot be read: {error}") from error


def _csv_records(file: Path, opened: TextIO) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield rows, each with a field for every column. A caption with an unquoted comma would lose its second half."""
    rows = csv.DictReader(opened, strict=True)
    for record in rows:
        # DictReader files surplus fields under None, and missing ones as None.
        if None in record or None in record.values():
            raise InvalidArgument(
                f"{file}, line {rows.line_num}: it has more or fewer fields than the header; write fields with "
                'commas in quotes, and a quote in them as ""'
            )
        # A row ends in the line that the reader counts, and begins above the line ends in its fields.
        yield rows.line_num - sum(value.count("\n") for value in record.values()), record


def _captions(folder: Path, sides: Sides) -> Found | None:
    paths = list(visible_files(folder))
    texts = {path.with_suffix(""): path for path in paths if kind_of(path) == "text"}
    media = [path for path in paths if path.suffix.lower() in MEDIA_SUFFIXES]
    # The question which side is the text is asked only where there are texts.
    if not any(path.with_suffix("") in texts for path in media):
        return None
    files = sides.chosen(media)
    paired = [path for path in files if path.with_suffix("") in texts]
    if not paired:
        return None
    captions = {path: _lines(texts[path.with_suffix("")]) for path in paired}
    names = {path.with_suffix("") for path in files}
    sentences = _left_out(
        {
            " without a text of the same name": [path for path in files if path not in captions],
            f" without a file for {sides.files!r} of the same name": sorted(
                texts[name] for name in texts.keys() - names
            ),
            f", which modality {sides.files!r} does not take": sorted({*media} - {*files}),
        }
    )
    if any(len(lines) > 1 for lines in captions.values()):
        sentences.insert(0, "each line of a text is a caption")
    return Found(_caption_rows(folder, captions, sides), sentences)


def _lines(text: Path) -> list[str]:
    try:
        lines = text.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{text} cannot be read as UTF-8: {error}") from error
    return [line.strip() for line in lines if line.strip()] or [""]


def _caption_rows(
    folder: Path, captions: Mapping[Path, list[str]], sides: Sides
) -> Iterator[RawRow]:
    """Yield a row for each caption. An id is the name of the file, which no other has, and the caption's number."""
    for path, lines in captions.items():
        name = path.relative_to(folder).as_posix()
        for number, caption in enumerate(lines, start=1):
            items: dict[str, Item] = {sides.files: path, sides.text: caption}
            yield RawRow(name if len(lines) == 1 else f"{name}#{number}", None, items, "")


def _classes(folder: Path, sides: Sides) -> Found | None:
    media = [path for path in visible_files(folder) if path.suffix.lower() in MEDIA_SUFFIXES]
    if not any(path.parent != folder for path in media):
        return None
    files = sides.chosen(media)
    sentences = _left_out(
        {
            " in no folder of a class": [path for path in files if path.parent == folder],
            f", which modality {sides.files!r} does not take": sorted({*media} - {*files}),
        }
    )
    inside = [path for path in files if path.parent != folder]
    return Found(_class_rows(folder, inside, sides), sentences) if inside else None


def _class_rows(folder: Path, files: Iterable[Path], sides: Sides) -> Iterator[RawRow]:
    for path in files:
        words = re.sub(r"[_-]+", " ", path.parent.name).strip()
        items: dict[str, Item] = {sides.files: path, sides.text: words}
        yield RawRow(path.relative_to(folder).as_posix(), path.parent.name, items, "")


LAYOUTS: dict[str, Callable[[Path, Sides], Found | None]] = {
    "manifest": _manifest,
    "captions": _captions,
    "classes": _classes,
}


def unknown_layout(folder: Path, sides: Sides) -> InvalidArgument:
    """Return the error for a folder whose layout is not known: what it has, and what is missing."""
    paths = list(visible_files(folder))
    if not paths:
        return InvalidArgument(f"folder {folder} is empty")
    files, kind = sides.chosen(paths), sides.kind
    if files:
        return InvalidArgument(
            f"folder {folder} has {counted(files)}, and no texts beside them: {files[0].stem}.txt beside "
            f"{files[0].name} is missing; or put them in a folder for each class, or write a manifest "
            "(docs/datasets.md)"
        )
    if kind is not None:
        missing = f"no {_NOUNS.get(kind, kind)}s, which modality {sides.files!r} takes"
    else:
        missing = "no known layout of raw files"
    return InvalidArgument(
        f"folder {folder} has {missing}, and no shards (docs/datasets.md); it has {counted(paths)}"
    )


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield all files by name, without hidden files and folders. Raises InvalidArgument for links that leave the folder.

    Linked folders are not entered: those inside are visited where they are.
    """
    resolved = folder.resolve()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *sorted(names)):
            path = Path(root, name)
            if name.startswith("."):
                continue
            if path.is_symlink():
                check_inside(path, resolved)
            if name not in folders:
                yield path


def check_inside(path: Path, folder: Path) -> None:
    """Raises InvalidArgument if a file lies outside of a resolved folder: by its name, or through a link."""
    target = path.resolve()
    if not target.is_relative_to(folder):
        what = "a link to " if path.is_symlink() else ""
        raise InvalidArgument(
            f"{path} is {what}{target}, outside of folder {folder}; only files in the folder are sent: copy the "
            "file there, or remove it"
        )


# --- Packing --------------------------------------------------------------------------------------

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
