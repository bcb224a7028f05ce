"""Recipes: what they read of the layouts, and what they say of those that are wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.paper.gather import read_sources
from benchmarks.paper.prepare import readable
from benchmarks.paper.sources import SOURCES
from benchmarks.paper.sources.source import InvalidSource, Rows
from benchmarks.paper.sources.ucf101 import text_of


@pytest.fixture
def copy(tmp_path: Path, tiny_root: Path) -> Callable[[str], Path]:
    """Copy one source, and return its folder."""

    def make(name: str) -> Path:
        folder = tmp_path / SOURCES[name].folder
        shutil.copytree(tiny_root / SOURCES[name].folder, folder)
        return folder

    return make


def refusal(name: str, root: Path, *, partial: bool = True) -> str:
    with pytest.raises(InvalidSource) as caught:
        SOURCES[name].rows(root, partial=partial)
    return str(caught.value)


def rows_of(name: str, root: Path) -> Rows:
    return SOURCES[name].rows(root, partial=True)


def test_every_source_is_read_with_all_its_modalities(tiny_root: Path) -> None:
    for name, source in SOURCES.items():
        rows = rows_of(name, tiny_root)
        for split in rows.values():
            assert len(split) >= 8
            assert all(row.items.keys() == set(source.modalities) for row in split), name
        ids = [[row.id for row in split] for split in rows.values()]
        assert ids == [sorted(set(each)) for each in ids]


def test_rules_of_train_and_test(tiny_root: Path) -> None:
    ucf = rows_of("ucf101", tiny_root)
    assert {row.id.split("_")[3] for row in ucf["test"]} == {"test", "val"}
    assert text_of("ApplyEyeMakeup") == "apply eye makeup"
    esc = rows_of("esc50", tiny_root)
    tables = [pq.read_table(path) for path in sorted((tiny_root / "esc50/data").iterdir())]
    names = [name for table in tables for name in table.column("filename").to_pylist()]
    assert {row.id for row in esc["test"]} == set(names[-len(names) // 5 :])
    clotho = rows_of("clotho", tiny_root)
    assert all(str(row.items["text"]).endswith(", again") for row in clotho["train"])
    tvl = rows_of("tvl", tiny_root)
    assert not any(str(row.items["text"]).endswith(".") for row in tvl["train"])
    felt = next(row for row in tvl["test"] if row.id.startswith("ssvtp")).items["tactile"]
    assert str(felt).endswith("images_tac/test_0_tac.jpg")


def test_a_half_downloaded_source_names_files_and_the_rows_that_are_expected(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("clotho")
    (folder / "development" / "sound 3.wav").unlink()
    said = refusal("clotho", folder.parent, partial=False)
    assert "1 of 8 files of the train rows are missing" in said
    assert "sound 3.wav" in said
    assert "8 train rows, expected 2893: download the rest, or use --partial" in said
    assert "expected 2893" not in refusal("clotho", folder.parent)


def test_a_class_without_training_videos_is_incomplete(copy: Callable[[str], Path]) -> None:
    folder = copy("ucf101")
    shutil.rmtree(folder / "UCF101/train/DryHair")
    said = refusal("ucf101", folder.parent)
    assert "class DryHair has test videos and no train videos" in said
    assert "3 classes" not in said


def test_another_release_is_recognised(copy: Callable[[str], Path]) -> None:
    folder = copy("clotho")
    (folder / "clotho_captions_validation.csv").write_text("file_name,caption_1\n")
    assert "this is Clotho 2.0 or 2.1, expected Clotho 1.0" in refusal("clotho", folder.parent)
    folder = copy("tvl")
    (folder / "tvl_dataset/hct/train.csv").write_text("url,tactile,caption\n")
    assert "this is the revised TVL" in refusal("tvl", folder.parent)


def test_a_renamed_folder_is_named_with_what_lies_beside_it(copy: Callable[[str], Path]) -> None:
    folder = copy("llvip")
    (folder / "LLVIP/infrared").rename(folder / "LLVIP/thermal")
    said = refusal("llvip", folder.parent)
    assert "LLVIP/infrared/train is missing" in said
    assert "has thermal, visible: was it renamed?" in said
    folder.rename(folder.with_name("LLVIP-dataset"))
    assert "LLVIP-dataset: was it renamed?" in refusal("llvip", folder.parent)


@pytest.mark.parametrize(
    ("name", "path", "content", "words"),
    [
        ("esc50", "data/train-00000-of-00002-tiny.parquet", "PAR1", "may be half-downloaded"),
        (
            "clotho",
            "clotho_captions_evaluation.csv",
            "name,text\n",
            "column 'file_name' is missing",
        ),
        ("vggsound", "vggsound.csv", "a,b\n", "line 1: ['a', 'b'] is not youtube id, start, label"),
    ],
)
def test_damaged_tables_are_named(
    copy: Callable[[str], Path], name: str, path: str, content: str, words: str
) -> None:
    folder = copy(name)
    (folder / path).write_text(content)
    said = refusal(name, folder.parent)
    assert words in said
    assert path.rpartition("/")[2] in said


def test_a_video_that_is_cut_off_is_named(copy: Callable[[str], Path], tmp_path: Path) -> None:
    video = next((copy("ucf101") / "UCF101/train").rglob("*.avi"))
    video.write_bytes(video.read_bytes()[:40])
    with pytest.raises(InvalidSource, match="cannot be read as AVI, it may be half-downloaded"):
        readable(video, tmp_path / "converted")
    assert list((tmp_path / "converted").glob("*.mp4")) == []


def test_problems_of_all_sources_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidSource) as caught:
        read_sources(tmp_path, list(SOURCES), partial=False)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == list(SOURCES)
