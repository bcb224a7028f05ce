"""VGGSound-S: the first 10,001 train and 2,001 test rows of vggsound.csv whose video is there.

The sound is that of the video: no file is extracted.
"""

import csv
from pathlib import Path

from benchmarks.paper.sources.source import (
    Problems,
    Row,
    Rows,
    Source,
    Split,
    require_file,
    require_folder,
)
from cmcl.contract.modality import ModalityPair

_FIRST: dict[Split, int] = {"train": 10_001, "test": 2_001}
# As the archive on the Hub unpacks.
_VIDEOS = Path("scratch/shared/beegfs/hchen/train_data/VGGSound_final/video")
_FIELDS = 4


def _read(folder: Path, problems: Problems) -> Rows:
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    table = folder / "vggsound.csv"
    is_there = require_file(table, problems, "youtube id, start, label, split; no header")
    if not (require_folder(folder / _VIDEOS, problems, "the .mp4 files") and is_there):
        return rows
    named = {path.name for path in (folder / _VIDEOS).iterdir()}
    with table.open(newline="", encoding="utf-8") as file:
        for number, fields in enumerate(csv.reader(file), start=1):
            if len(fields) != _FIELDS or not fields[1].isdecimal():
                problems.add(
                    f"{table}, line {number}: {fields} is not youtube id, start, label, split"
                )
                return rows
            youtube, start, label, part = fields
            name = f"{youtube}_{int(start):06d}"
            split: Split | None = part if part in ("train", "test") else None  # type: ignore[assignment]
            if split is None or f"{name}.mp4" not in named or len(rows[split]) == _FIRST[split]:
                continue
            video = folder / _VIDEOS / f"{name}.mp4"
            rows[split].append(Row(name, {"text": label, "audio": video, "video": video}, label))
    return rows


SOURCE = Source(
    name="vggsound",
    title="VGGSound, its table and videos",
    folder="vggsound",
    url="https://huggingface.co/datasets/Loie/VGGSound",
    licence="CC BY 4.0 for the table; the videos belong to their uploaders",
    pairs=(ModalityPair(first="text", second="audio"), ModalityPair(first="text", second="video")),
    sizes={split: (count, count) for split, count in _FIRST.items()},
    read=_read,
)
