"""LLVIP: pictures at night, visible and infrared, of the same names."""

from pathlib import Path

from benchmarks.paper.sources.source import (
    Problems,
    Row,
    Rows,
    Source,
    Split,
    files_in,
    require_folder,
)
from cmcl.contract.modality import ModalityPair


def _read(folder: Path, problems: Problems) -> Rows:
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    for split in rows:
        visible, infrared = (folder / "LLVIP" / kind / split for kind in ("visible", "infrared"))
        both = [
            require_folder(each, problems, "the .jpg files of LLVIP")
            for each in (visible, infrared)
        ]
        if all(both):
            rows[split] = [
                Row(path.stem, {"vision": path, "thermal": infrared / path.name})
                for path in files_in(visible, [".jpg"])
            ]
    return rows


SOURCE = Source(
    name="llvip",
    title="LLVIP",
    folder="llvip",
    url="https://github.com/bupt-ai-cz/LLVIP",
    licence="for non-commercial research only",
    pairs=(ModalityPair(first="vision", second="thermal"),),
    sizes={"train": (12_025, 12_025), "test": (3463, 3463)},
    read=_read,
)
