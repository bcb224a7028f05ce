"""TVL: touch, vision and language. SSVTP and the three parts of HCT, as first released."""

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

_PARTS = ("ssvtp", "hct/data1", "hct/data2", "hct/data3")
_RELEASE = "the first release: 4,587 rows of SSVTP and 39,154 of HCT"
_ALL = 4587 + 39154


def _read(folder: Path, problems: Problems) -> Rows:
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    place = folder / "tvl_dataset"
    if not require_folder(place, problems, _RELEASE):
        return rows
    _check_release(place, problems)
    for part in _PARTS:
        if require_folder(place / part, problems, _RELEASE):
            for split in rows:
                rows[split] += _part(place, part, split, problems)
    return rows


def _check_release(place: Path, problems: Problems) -> None:
    """The revised release has one folder and one table for all of HCT."""
    if (place / "hct").is_dir() and any((place / "hct").glob("*.csv")):
        problems.add(
            f"{place / 'hct'} has tables of its own: this is the revised TVL, expected {_RELEASE}, "
            "with a table in each of hct/data1, data2 and data3"
        )


def _part(place: Path, part: str, split: Split, problems: Problems) -> list[Row]:
    table = place / part / f"{split}.csv"
    if not require_file(table, problems, _RELEASE):
        return []
    # The test table of SSVTP has no column of tactile files: their names follow from those of the pictures.
    has_tactile = not (part == "ssvtp" and split == "test")
    columns = ["url", "tactile", "caption"] if has_tactile else ["url", "caption"]
    rows = []
    for number, row in enumerate(csv_rows(table, columns, problems, _RELEASE)):
        caption = row["caption"].replace("\r\n", "").replace(".", "").strip()
        if not caption:
            continue
        tactile = row["tactile"] if has_tactile else row["url"].replace("rgb", "tac")
        name = f"{part.replace('/', '_')}_{number:06d}"
        root = place / part
        items: dict[str, str | Path] = {
            "text": caption,
            "vision": root / row["url"],
            "tactile": root / tactile,
        }
        rows.append(Row(name, items))
    return rows


SOURCE = Source(
    name="tvl",
    title=_RELEASE,
    folder="tvl",
    url="https://huggingface.co/datasets/mlfu7/Touch-Vision-Language-Dataset",
    licence="MIT",
    pairs=(
        ModalityPair(first="text", second="vision"),
        ModalityPair(first="text", second="tactile"),
    ),
    # Rows without a caption are left out, as published.
    sizes={"all": (int(0.99 * _ALL), _ALL)},
    read=_read,
)
