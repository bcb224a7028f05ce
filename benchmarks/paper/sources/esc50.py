"""ESC-50: environmental sounds in two Parquet files. The last 400 rows, by file order, are the test rows."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.paper.sources.source import (
    Problems,
    Row,
    Rows,
    Source,
    files_in,
    require_folder,
)
from cmcl.contract.modality import ModalityPair

_TEST_SHARE = 5  # one row in five: 400 of 2,000
_FILES = 2
_COLUMNS = ("filename", "category", "audio")


def _read(folder: Path, problems: Problems) -> Rows:
    data = folder / "data"
    if not require_folder(data, problems, "the two Parquet files train-0000*-of-00002-*.parquet"):
        return {"train": [], "test": []}
    files = files_in(data, [".parquet"])
    if len(files) != _FILES:
        problems.add(
            f"{data} has {len(files)} Parquet files, expected {_FILES} with 1,000 rows each: "
            f"{', '.join(path.name for path in files) or 'none'}"
        )
        return {"train": [], "test": []}
    rows = [row for path in files for row in _rows(path, folder / "extracted", problems)]
    tested = len(rows) // _TEST_SHARE
    return {"train": rows[: len(rows) - tested], "test": rows[len(rows) - tested :]}


def _rows(path: Path, extracted: Path, problems: Problems) -> list[Row]:
    """Rows of a file. Their sounds are written beside it once, because manifests name files."""
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        problems.add(f"{path} cannot be read as Parquet, it may be half-downloaded: {error}")
        return []
    absent = [name for name in _COLUMNS if name not in table.column_names]
    if absent:
        problems.add(f"{path}: column {absent[0]!r} is missing, found {table.column_names}")
        return []
    extracted.mkdir(exist_ok=True)
    rows = []
    for row in table.select(_COLUMNS).to_pylist():
        sound = extracted / Path(row["filename"]).name
        _write_once(sound, row["audio"]["bytes"])
        name = row["category"]
        rows.append(Row(row["filename"], {"text": name, "audio": sound}, name))
    return rows


def _write_once(path: Path, data: bytes) -> None:
    if not (path.is_file() and _digest(path.read_bytes()) == _digest(data)):
        path.write_bytes(data)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


SOURCE = Source(
    name="esc50",
    title="ESC-50 as Parquet",
    folder="esc50",
    url="https://huggingface.co/datasets/ashraq/esc50",
    licence="CC BY-NC 3.0: non-commercial use only",
    pairs=(ModalityPair(first="text", second="audio"),),
    sizes={"train": (1600, 1600), "test": (400, 400), "classes": (50, 50)},
    read=_read,
)
