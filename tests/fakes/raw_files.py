"""Raw rows in files of every form, and reading all of them."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cmcl.contract.dataset import RejectedRow, ShardRef
from cmcl.contract.encoder import EncoderSpec
from workers.encoders.media import Item
from workers.prepare.plan import plan
from workers.prepare.rows import Row, UnitReader
from workers.prepare.units import DatasetPlan, DatasetSource, SideSpec
from workers.sandbox.child import Child


def side(modality: str, takes: str | None = None, width: int = 3, **limits: Any) -> SideSpec:
    """A side with an encoder that takes such items; None: with features."""
    encoder = None
    if takes is not None:
        fields = {"name": modality, "kind": "synthetic", "takes": takes, "width": width}
        encoder = EncoderSpec.model_validate({**fields, **limits})
    return SideSpec(modality=modality, width=width, encoder=encoder)


IMAGE, TEXT = side("image", "image"), side("text", "text")
PLACE, DEPTH = side("place", "numbers"), side("depth")


def picture(colour: int = 0, size: tuple[int, int] = (4, 3)) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (colour % 256, colour // 256 % 256, 7)).save(file, "PNG")
    return file.getvalue()


def jsonl(rows: Iterable[Any]) -> bytes:
    """Objects, or lines as they are."""
    return b"".join(
        (row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()) + b"\n"
        for row in rows
    )


def csv_bytes(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    """Lists of numbers become JSON."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in rows:
        values = [row.get(name, "") for name in columns]
        writer.writerow([json.dumps(each) if isinstance(each, list) else each for each in values])
    return file.getvalue().encode()


def parquet_bytes(columns: dict[str, Any], **options: Any) -> bytes:
    """A table of columns."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def tar_bytes(members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> bytes:
    """Files, or members without contents."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


@dataclass(frozen=True)
class Read:
    """What was read of a dataset."""

    plan: DatasetPlan
    rows: list[Row]
    rejected: list[RejectedRow]

    @property
    def reasons(self) -> dict[str | None, str]:
        """By id."""
        return {row.id: row.reason for row in self.rejected}

    @property
    def digests(self) -> list[tuple[str, str | None, bytes, bytes]]:
        """Id, label and digests of the items of each row."""
        return [(row.id, row.label, row.keys[0], row.keys[1]) for row in self.rows]

    @property
    def ids(self) -> list[str]:
        return [row.id for row in self.rows]


class Dataset:
    """A folder with files of one dataset, read in a child."""

    def __init__(self, folder: Path, child: Child, *sides: SideSpec) -> None:
        self.folder, self.child = folder, child
        self.sides = (sides[0], sides[1])
        self.refs: list[ShardRef] = []

    def file(self, name: str, data: bytes) -> str:
        """Write a file that rows name, and return its address."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path.resolve().as_uri()

    def add(self, name: str, data: bytes, sha256: str | None = None) -> str:
        """Write a file of rows, and return its address."""
        self.refs.append(ShardRef(uri=self.file(name, data), sha256=sha256))
        return self.refs[-1].uri

    @property
    def source(self) -> DatasetSource:
        return DatasetSource(
            files=tuple(self.refs),
            sides=self.sides,
            allowed_prefixes=(self.folder.resolve().as_uri(),),
        )

    def plan(self) -> DatasetPlan:
        return plan(self.child, self.source)

    def read(self, planned: DatasetPlan | None = None, **options: Any) -> Read:
        """All rows of all units."""
        planned = planned or self.plan()
        read = Read(planned, [], [])
        for unit in planned.units:
            with UnitReader(self.child, self.source, unit, **options) as reader:
                read.rejected.extend(reader.rejected)
                items: dict[tuple[int, bytes], Item] = {}
                for each in reader.read():
                    if isinstance(each, RejectedRow):
                        read.rejected.append(each)
                        continue
                    for side, (key, item) in enumerate(zip(each.keys, each.items, strict=True)):
                        if item is not None:
                            items[side, key] = item
                    first, second = (items[side, key] for side, key in enumerate(each.keys))
                    read.rows.append(each._replace(items=(first, second)))
        read.rejected.sort(key=lambda row: (row.file, row.row))
        return read


def same_item(first: Any, second: Any) -> bool:
    """Whether two decoded items are equal."""
    if isinstance(first, np.ndarray):
        return bool(np.array_equal(first, second))
    if isinstance(first, Image.Image):
        return first.size == second.size and first.tobytes() == second.tobytes()
    return bool(first == second)
