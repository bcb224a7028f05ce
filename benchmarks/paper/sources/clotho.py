"""Clotho 1.0: sounds with five captions, of which the first counts. Train: development; test: evaluation."""

from pathlib import Path

from benchmarks.paper.sources.source import (
    Problems,
    Row,
    Rows,
    Source,
    Split,
    csv_rows,
    require_file,
    require_folder,
)
from cmcl.contract.modality import ModalityPair

_PARTS: dict[Split, str] = {"train": "development", "test": "evaluation"}
_RELEASE = "Clotho 1.0 (Zenodo record 3490684)"


def _read(folder: Path, problems: Problems) -> Rows:
    if (folder / "clotho_captions_validation.csv").is_file():
        problems.add(
            f"{folder} has clotho_captions_validation.csv: this is Clotho 2.0 or 2.1, expected {_RELEASE}, "
            "which has 2,893 development and 1,045 evaluation clips and no validation split"
        )
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    for split, part in _PARTS.items():
        path = folder / f"clotho_captions_{part}.csv"
        is_there = require_file(path, problems, _RELEASE)
        if not (require_folder(folder / part, problems, f"the sounds of {part}") and is_there):
            continue
        for row in csv_rows(path, ["file_name", "caption_1"], problems, _RELEASE):
            name = row["file_name"]
            items: dict[str, str | Path] = {"text": row["caption_1"], "audio": folder / part / name}
            rows[split].append(Row(Path(name).stem, items))
    return rows


SOURCE = Source(
    name="clotho",
    title=_RELEASE,
    folder="clotho",
    url="https://zenodo.org/records/3490684",
    licence="Tampere University licence for captions, Creative Commons for sounds; non-commercial",
    pairs=(ModalityPair(first="text", second="audio"),),
    sizes={"train": (2893, 2893), "test": (1045, 1045)},
    read=_read,
)
