"""Layouts of folders with raw pairs. Each function reads the rows of one layout; it returns None for other folders.

A row has two items, each a text, numbers or a file. Files with names that begin with a dot are not read, and a file
outside of the folder is refused. The first layout that fits is used:

manifest        metadata.jsonl, metadata.csv, manifest.jsonl or manifest.csv: columns id, label, <modality>, <modality>_file_name, file_name
captions        a file and a text of the same name: a.jpg, a.txt; each line of the text is a caption
classes         a folder for each class, whose name is the text and the label
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from cmcl.client.errors import InvalidArgument
from cmcl.contract.modality import ModalityPair

KINDS: dict[str, frozenset[str]] = {
    "image": frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}),
    "audio": frozenset({".wav", ".flac", ".ogg", ".mp3", ".m4a"}),
    "video": frozenset({".mp4", ".webm", ".mkv", ".mov"}),
    "text": frozenset({".txt"}),
}
_NOUNS = {"image": "picture", "audio": "sound", "video": "video", "text": "text"}
SUFFIXES = KINDS["image"] | KINDS["audio"] | KINDS["video"]
MANIFESTS = ("metadata.jsonl", "metadata.csv", "manifest.jsonl", "manifest.csv")
_TEXT_NAMES = frozenset({"text", "caption", "captions", "title", "description", "sentence"})
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
            if self.takes.get(name, "text" if name in _TEXT_NAMES else None) == "text"
        ]
        if len(texts) != 1:
            permitted = ", ".join(sorted(_TEXT_NAMES))
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
        named: Takes = {kind: kind for kind in KINDS}
        return self.takes.get(self.files, named.get(self.files))

    def chosen(self, paths: Iterable[Path]) -> list[Path]:
        """Return the pictures, sounds or videos that the modality of the files takes. Raises InvalidArgument."""
        media = [path for path in paths if path.suffix.lower() in SUFFIXES]
        kind = self.kind
        if kind is None and len({kind_of(path) for path in media}) > 1:
            raise InvalidArgument(
                f"there are {counted(media)}: which of them does modality {self.files!r} take? Bind it to an "
                "encoder, or write a manifest (docs/datasets.md)"
            )
        suffixes = SUFFIXES if kind is None else KINDS.get(kind, frozenset())
        return [path for path in media if path.suffix.lower() in suffixes]


def kind_of(path: Path) -> str | None:
    """Return what a file is, by its suffix."""
    suffix = path.suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)


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
    media = [path for path in paths if path.suffix.lower() in SUFFIXES]
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
    media = [path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES]
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
