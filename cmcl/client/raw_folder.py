"""Folders of raw pairs: recognise the layout of a folder, and pack its rows into webdataset tars."""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cmcl.client.errors import InvalidArgument
from cmcl.client.raw_layouts import FILE_NAME, LAYOUTS, Found, Item
from cmcl.contract.modality import ModalityPair

_TAR_BYTES = 128 << 20
_LONGEST_NAME = 64


@dataclass(frozen=True)
class RawRow:
    """One pair. A path is a file whose bytes are the item."""

    id: str
    label: str | None
    items: Mapping[str, Item]


@dataclass(frozen=True)
class RawFolder:
    """The rows of a folder, the name of its layout, and files that rows name and that do not exist."""

    folder: Path
    layout: str
    rows: list[RawRow]
    missing: list[str]

    @property
    def name(self) -> str:
        """Name of its tars, short enough for an upload."""
        return self.folder.name[:_LONGEST_NAME].strip() or "rows"

    def __str__(self) -> str:
        missing = f", {len(self.missing)} named files are missing" if self.missing else ""
        return f"{self.folder}: layout {self.layout}, {len(self.rows)} rows{missing}"


def read_raw_folder(path: Path, pair: ModalityPair) -> RawFolder | None:
    """Read the rows of a folder, or of a manifest that names files; None if no layout is recognised.

    Raises InvalidArgument if the layout is damaged, or no row has all its files.
    """
    folder = path if path.is_dir() else path.parent
    for layout, read in LAYOUTS.items():
        if not path.is_dir() and layout != "manifest":
            continue
        found = read(path, pair)
        if found is not None:
            return _checked(folder, layout, found)
    return None


def _checked(folder: Path, layout: str, found: Found) -> RawFolder:
    rows, missing = [], []
    for id_, label, items in found:
        lost = [
            str(item) for item in items.values() if isinstance(item, Path) and not item.is_file()
        ]
        missing += lost
        if not lost:
            rows.append(RawRow(id_, label, items))
    if not rows:
        raise InvalidArgument(
            f"folder {folder} looks like {layout}, but has no row whose files exist"
            + (f"; the first missing file: {missing[0]}" if missing else "")
        )
    return RawFolder(folder, layout, rows, missing)


def packed(
    raw: RawFolder, pair: ModalityPair, name: str, into: Path, most_bytes: int = _TAR_BYTES
) -> Iterator[Path]:
    """Write the rows as tars of at most `most_bytes`, one at a time; equal rows give equal bytes.

    A row that is larger has a tar for itself.

    Members are `<key>.<modality>.<suffix>` and `<key>.json` with id, label and numbers.
    Raises InvalidArgument for a file that cannot be read.
    """
    tar, size, count = None, 0, 0
    for number, row in enumerate(raw.rows):
        members = _members(row, pair)
        bytes_ = sum(len(content) + 1024 for content in members.values())
        if tar is not None and size + bytes_ > most_bytes:
            tar.close()
            yield Path(str(tar.name))
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
    if tar is not None:
        tar.close()
        yield Path(str(tar.name))


def _members(row: RawRow, pair: ModalityPair) -> dict[str, bytes]:
    about: dict[str, object] = {"id": row.id}
    if row.label is not None:
        about["label"] = row.label
    members = {}
    for modality in pair.modalities:
        item = row.items[modality]
        if isinstance(item, tuple):
            about[modality] = item
        elif isinstance(item, str):
            members[f"{modality}.txt"] = item.encode()
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
