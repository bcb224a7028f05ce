"""Layouts of folders with raw pairs. Each function reads the rows of one layout; it returns None for other folders.

A row has two items, each a text, numbers or a file. The first layout that fits is used:

manifest        metadata.jsonl, metadata.csv, manifest.jsonl or manifest.csv: columns id, label, <modality>, <modality>_file_name, file_name
COCO            captions_*.json with images and annotations
Flickr30k       results.csv or results_20130124.token beside the images
Clotho          clotho_captions_*.csv: file_name, caption_1 to caption_5
AudioCaps       *.csv: audiocap_id, youtube_id, start_time, caption
captions        a file and a text of the same name: a.jpg, a.txt
classes         a folder for each class, whose name is the text and the label
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from cmcl.client.errors import InvalidArgument
from cmcl.contract.modality import ModalityPair

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
    | {".wav", ".flac", ".ogg", ".mp3", ".m4a"}
    | {".mp4", ".webm", ".mkv", ".mov"}
)
MANIFESTS = ("metadata.jsonl", "metadata.csv", "manifest.jsonl", "manifest.csv")
_TEXT_NAMES = frozenset({"text", "caption", "captions", "title", "description", "sentence"})
FILE_NAME = "file_name"

Item = str | Path | tuple[float, ...]
# What a layout yields: id, label, and the item of each modality.
Found = Iterator[tuple[str, str | None, dict[str, Item]]]


def _sides(pair: ModalityPair) -> tuple[str, str]:
    """Return the modality of the files, and that of the texts. Raises InvalidArgument."""
    texts = [name for name in pair.modalities if name in _TEXT_NAMES]
    if len(texts) != 1:
        permitted = ", ".join(sorted(_TEXT_NAMES))
        raise InvalidArgument(
            f"pair {pair}: which side is the text? One of them must be called {permitted}; or write a "
            "manifest (docs/datasets.md)"
        )
    files = pair.first if texts[0] == pair.second else pair.second
    return files, texts[0]


def _manifest(path: Path, pair: ModalityPair) -> Found | None:
    if path.is_dir():
        file = next((path / name for name in MANIFESTS if (path / name).is_file()), None)
    else:
        file = path if path.suffix.lower() in (".jsonl", ".csv") and _names_files(path) else None
    return None if file is None else _manifest_rows(file, pair)


def _names_files(path: Path) -> bool:
    """Return whether the first row of a manifest has a column that names files."""
    first = next(iter(_records(path)), {})
    return any(name == FILE_NAME or name.endswith(f"_{FILE_NAME}") for name in first)


def _manifest_rows(file: Path, pair: ModalityPair) -> Found:
    for number, record in enumerate(_records(file), start=1):
        items: dict[str, Item] = {}
        for modality in pair.modalities:
            name = record.get(f"{modality}_{FILE_NAME}")
            if name is None and record.get(modality) is None:
                # The convention of Hugging Face: the one file of a row, and a column of texts.
                name = record.get(FILE_NAME)
            value = record.get(modality) if name is None else file.parent / str(name)
            if value is None:
                raise InvalidArgument(
                    f"{file}, row {number}: no column {modality!r} or '{modality}_{FILE_NAME}'; it has "
                    f"{', '.join(map(repr, record))}"
                )
            items[modality] = value if isinstance(value, Path) else _item(value, file, number)
        label = record.get("label")
        yield (
            str(record.get("id", f"row-{number:08d}")),
            None if label in (None, "") else str(label),
            items,
        )


def _item(value: object, file: Path, row: int) -> Item:
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
            f"{file}, row {row}: {value!r} is neither a text nor a list of numbers"
        )
    return str(value)


def _records(file: Path) -> Iterator[Mapping[str, object]]:
    """Yield the rows of a JSONL or CSV file. Raises InvalidArgument."""
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
                yield record
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidArgument(f"{file} cannot be read: {error}") from error


def _csv_records(file: Path, opened: TextIO) -> Iterator[Mapping[str, object]]:
    """Yield rows, each with a field for every column. A caption with an unquoted comma would lose its second half."""
    rows = csv.DictReader(opened, strict=True)
    for number, record in enumerate(rows, start=1):
        # DictReader files surplus fields under None, and missing ones as None.
        if None in record or None in record.values():
            raise InvalidArgument(
                f"{file}, row {number} (line {rows.line_num}): it has more or fewer fields than the header; write fields "
                'with commas in quotes, and a quote in them as ""'
            )
        yield record


def _coco(folder: Path, pair: ModalityPair) -> Found | None:
    found = [*folder.glob("captions_*.json"), *folder.glob("annotations/captions_*.json")]
    return _coco_rows(folder, sorted(found), pair) if found else None


def _coco_rows(folder: Path, files: Iterable[Path], pair: ModalityPair) -> Found:
    image, text = _sides(pair)
    paths = _files_by_name(folder)
    for file in files:
        try:
            document = json.loads(file.read_text("utf-8"))
            names = {each["id"]: str(each["file_name"]) for each in document["images"]}
            for each in document["annotations"]:
                name = names[each["image_id"]]
                items: dict[str, Item] = {
                    image: paths.get(Path(name).name, folder / name),
                    text: str(each["caption"]).strip(),
                }
                yield f"coco-{each['id']}", None, items
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InvalidArgument(
                f"{file} is not a COCO file of captions (images: id, file_name; annotations: id, "
                f"image_id, caption): {error!r}"
            ) from error


def _flickr(folder: Path, pair: ModalityPair) -> Found | None:
    for name, split in (("results.csv", _flickr_csv), ("results_20130124.token", _flickr_token)):
        if (folder / name).is_file():
            return _flickr_rows(folder, folder / name, split, pair)
    return None


def _flickr_csv(line: str) -> tuple[str, str, str] | None:
    name, number, caption = [part.strip() for part in [*line.split("|", 2), "", ""][:3]]
    return None if name == "image_name" else (name, number, caption)


def _flickr_token(line: str) -> tuple[str, str, str] | None:
    key, _, caption = line.partition("\t")
    name, _, number = key.partition("#")
    return name, number, caption.strip()


def _flickr_rows(
    folder: Path,
    file: Path,
    split: Callable[[str], tuple[str, str, str] | None],
    pair: ModalityPair,
) -> Found:
    image, text = _sides(pair)
    paths = _files_by_name(folder)
    for line in file.read_text("utf-8").splitlines():
        if line.strip() and (parts := split(line)) is not None:
            name, number, caption = parts
            items: dict[str, Item] = {image: paths.get(name, folder / name), text: caption}
            yield f"{Path(name).stem}-{number}", None, items


def _clotho(folder: Path, pair: ModalityPair) -> Found | None:
    found = sorted(folder.glob("clotho_captions_*.csv"))
    return _clotho_rows(folder, found, pair) if found else None


def _clotho_rows(folder: Path, files: Iterable[Path], pair: ModalityPair) -> Found:
    audio, text = _sides(pair)
    paths = _files_by_name(folder)
    for file in files:
        for record in _records(file):
            name = str(record.get("file_name") or "")
            captions = {key: value for key, value in record.items() if key.startswith("caption")}
            if not name or not captions:
                raise InvalidArgument(f"{file}: columns file_name and caption_1 ... are needed")
            for key, caption in captions.items():
                items: dict[str, Item] = {
                    audio: paths.get(name, folder / name),
                    text: str(caption or "").strip(),
                }
                yield f"{Path(name).stem}-{key.removeprefix('caption_')}", None, items


def _audiocaps(folder: Path, pair: ModalityPair) -> Found | None:
    found = [file for file in sorted(folder.glob("*.csv")) if _is_audiocaps(file)]
    return _audiocaps_rows(folder, found, pair) if found else None


def _is_audiocaps(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return {"audiocap_id", "youtube_id", "caption"} <= set(opened.readline().strip().split(","))


def _audiocaps_rows(folder: Path, files: Iterable[Path], pair: ModalityPair) -> Found:
    audio, text = _sides(pair)
    by_stem = {path.stem: path for path in _files_by_name(folder).values()}
    for file in files:
        for record in _records(file):
            video, start = str(record["youtube_id"]), str(record.get("start_time", ""))
            # Downloaders name the file after the video, or the video and the start of its ten seconds.
            stems = (f"{video}_{start}", f"Y{video}", video, str(record["audiocap_id"]))
            path = next(
                (by_stem[stem] for stem in stems if stem in by_stem), folder / f"{video}.wav"
            )
            items: dict[str, Item] = {audio: path, text: str(record["caption"]).strip()}
            yield f"audiocaps-{record['audiocap_id']}", None, items


def _captions(folder: Path, pair: ModalityPair) -> Found | None:
    texts = {path.with_suffix("") for path in folder.rglob("*.txt")}
    files = sorted(path for path in media_files(folder) if path.with_suffix("") in texts)
    return _caption_rows(folder, files, pair) if files else None


def _caption_rows(folder: Path, files: Iterable[Path], pair: ModalityPair) -> Found:
    """Yield a row for each line of the text, which is a caption."""
    modality, text = _sides(pair)
    for path in files:
        try:
            lines = path.with_suffix(".txt").read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{path.with_suffix('.txt')} cannot be read: {error}") from error
        captions = [line.strip() for line in lines if line.strip()] or [""]
        key = path.relative_to(folder).with_suffix("").as_posix()
        for number, caption in enumerate(captions, start=1):
            items: dict[str, Item] = {modality: path, text: caption}
            yield (key if len(captions) == 1 else f"{key}-{number}"), None, items


def _classes(folder: Path, pair: ModalityPair) -> Found | None:
    files = sorted(path for path in media_files(folder) if path.parent != folder)
    return _class_rows(folder, files, pair) if files else None


def _class_rows(folder: Path, files: Iterable[Path], pair: ModalityPair) -> Found:
    modality, text = _sides(pair)
    for path in files:
        name = path.parent.name
        words = re.sub(r"[_-]+", " ", name).strip()
        yield path.relative_to(folder).as_posix(), name, {modality: path, text: words}


LAYOUTS: dict[str, Callable[[Path, ModalityPair], Found | None]] = {
    "manifest": _manifest,
    "COCO": _coco,
    "Flickr30k": _flickr,
    "Clotho": _clotho,
    "AudioCaps": _audiocaps,
    "captions": _captions,
    "classes": _classes,
}


def media_files(folder: Path) -> Iterator[Path]:
    """Yield pictures, sounds and videos by their suffixes, without hidden files and folders."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(root) / name


def _files_by_name(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in media_files(folder)}
