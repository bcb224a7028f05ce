"""Recipes: what they read of the layouts, and what they say of those that are wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

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
