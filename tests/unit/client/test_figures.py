"""The figures of the demo, on matrices that can be worked out by hand."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

from cmcl.contract.modality import FileEntry, ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.contract.version import Drift, LearnedDataset, Recall, VersionManifest, VersionReport
from cmcl.demo.run import draw, stream_figures

DIGEST = "0" * 64
AT_1 = [[0.8], [0.6, 0.5], [0.7, 0.3, 0.9]]
DRIFT = [[], [0.1], [0.05, 0.2]]


def learned(number: int) -> LearnedDataset:
    return LearnedDataset(
        dataset=f"d-{number}",
        name=f"data {number}",
        pair=ModalityPair(first="image", second="text"),
        rows=10,
        version=number + 1,
        moments=FileEntry(sha256=DIGEST, bytes=1),
        shard_digests=(DIGEST,),
    )


def version(index: int) -> VersionManifest:
    return VersionManifest(
        model="scenes",
        version=index + 1,
        parent=index or None,
        job=f"j-{index}",
        attempt=1,
        dataset=f"d-{index}",
        spec=ModelSpec(modalities={"image": 4, "text": 3}),
        code_version="test",
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        files={},
        learned=tuple(learned(number) for number in range(index + 1)),
        report=VersionReport(
            final_loss=0.5,
            updates=1,
            ranks=1,
            drift={
                f"d-{old}": Drift(since_learned=value, against_parent=9.0)
                for old, value in enumerate(DRIFT[index])
            },
            evaluation={
                f"d-{old}": Recall(rows=10, at_1=value, at_5=value / 2, at_10=value / 2)
                for old, value in enumerate(AT_1[index])
            },
        ),
    )


def test_the_matrix_has_a_row_for_each_version_and_a_column_for_each_dataset_so_far() -> None:
    figures = stream_figures([version(index) for index in range(3)])
    assert figures.names == ["data 0", "data 1", "data 2"]
    assert figures.at_1 == AT_1
    assert figures.at_10 == [[value / 2 for value in row] for row in AT_1]
    assert figures.drift == DRIFT
    assert figures.max_drift == 0.2


def test_the_picture_has_both_matrices(tmp_path: Path) -> None:
    figures = stream_figures([version(index) for index in range(3)])
    draw({"improve": figures, "preserve": figures}, tmp_path / "forgetting.svg")
    root = ET.parse(tmp_path / "forgetting.svg").getroot()
    shown = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    for words in ("improve", "preserve", "data 2", "80.0", "−20.0", "−10.0"):
        assert words in shown
