"""UCF101: videos of human actions. Train; test is test and val together. The text is the class name in words."""

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

_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "val")}


def text_of(name: str) -> str:
    """The class name in lower-case words: ApplyEyeMakeup is "apply eye makeup"."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()


def _read(folder: Path, problems: Problems) -> Rows:
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    for split, parts in _PARTS.items():
        for part in parts:
            place = folder / "UCF101" / part
            if not require_folder(place, problems, "a folder for each class, with its .avi files"):
                continue
            for kind in sorted(path for path in place.iterdir() if path.is_dir()):
                rows[split] += [
                    Row(
                        f"{kind.name}_{video.stem}",
                        {"text": text_of(kind.name), "video": video},
                        kind.name,
                    )
                    for video in files_in(kind, [".avi"])
                ]
    _check_classes(rows, problems)
    return rows


def _check_classes(rows: Rows, problems: Problems) -> None:
    """A class without a training row has no learned text, and a half-downloaded folder looks like that."""
    trained, tested = ({row.label for row in rows[split]} for split in ("train", "test"))
    for name in sorted(str(each) for each in tested - trained):
        problems.add(f"class {name} has test videos and no train videos: its folder is incomplete")


SOURCE = Source(
    name="ucf101",
    title="UCF101, split into train, test and val",
    folder="ucf101",
    url="https://huggingface.co/datasets/NoahMartinezXiang/UCF101",
    licence="not stated by its authors (University of Central Florida); for research",
    pairs=(ModalityPair(first="text", second="video"),),
    sizes={"all": (13_320, 13_320), "classes": (101, 101)},
    read=_read,
)
