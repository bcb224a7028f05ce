"""NYUDv2: pictures with depth, in folders of scenes. The conversion to PNG is unpublished.

The text, the kind of scene, is in no step.
"""

from pathlib import Path

from benchmarks.paper.sources.source import Problems, Row, Rows, Source, Split, require_folder
from cmcl.contract.modality import ModalityPair

_PARTS: dict[Split, str] = {"train": "train", "test": "val"}


def _read(folder: Path, problems: Problems) -> Rows:
    rows: dict[Split, list[Row]] = {"train": [], "test": []}
    for split, part in _PARTS.items():
        place = folder / "raw_data" / part
        what = "scene/number/rgb.png and depth.png; the Hub's release has other files, see the docs"
        if not require_folder(place, problems, what):
            continue
        for scene in sorted(path for path in place.iterdir() if path.is_dir()):
            rows[split] += [
                Row(
                    f"{scene.name}_{frame.name}",
                    {
                        "text": scene.name.split("_")[0],
                        "vision": frame / "rgb.png",
                        "depth": frame / "depth.png",
                    },
                )
                for frame in sorted(path for path in scene.iterdir() if path.is_dir())
            ]
    return rows


SOURCE = Source(
    name="nyudv2",
    title="NYU Depth V2, converted to PNG",
    folder="nyu-d-2",
    url="https://huggingface.co/datasets/sayakpaul/nyu_depth_v2",
    licence="not stated by its authors (New York University); the copy on the Hub is Apache-2.0",
    pairs=(ModalityPair(first="text", second="vision"), ModalityPair(first="text", second="depth")),
    sizes={"train": (47_584, 47_584), "test": (654, 654)},
    read=_read,
)
