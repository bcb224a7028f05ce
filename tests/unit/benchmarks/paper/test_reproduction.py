"""The command from files on disk to the table, on small folders of the published layouts."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from benchmarks.paper.__main__ import main
from benchmarks.paper.caches import read_caches
from benchmarks.paper.families import ChosenEncoder, choose_encoder
from benchmarks.paper.features import read_features
from benchmarks.paper.report import LAST_LINE
from benchmarks.paper.results import code_digest
from benchmarks.paper.sources.source import InvalidSource
from benchmarks.paper.synthetic import write_synthetic
from tests.unit.benchmarks.command import Answer, answer_of

SMALL = ("--tiny", "--encoder", "fake-languagebind", "--seeds", "1", "--jobs", "1")
BATCH = ("--batch-size", "4")


def run(work: Path, root: Path, *more: str) -> Answer:
    return answer_of(main, *SMALL, *BATCH, "--work", work, "--root", root, *more)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def answer(work: Path, tiny_root: Path) -> Answer:
    return run(work, tiny_root, "--methods", "untrained,vanilla,improve", "--json")


def test_the_last_line_has_the_figures_of_every_method(answer: Answer) -> None:
    assert answer.status == 0, answer.stderr
    found = answer.document
    assert found["encoders"] == ["fake-languagebind"]
    assert found["steps"] == 11
    assert list(found["methods"]) == ["untrained", "vanilla", "improve"]
    for method in found["methods"].values():
        assert method.keys() == {*LAST_LINE, "seconds"}
    assert found["methods"]["untrained"]["bwt_acc"] is None
    assert found["methods"]["improve"]["acc"] > found["methods"]["untrained"]["acc"]
    assert any("TVL" in each for each in found["deviations"])


def test_a_finished_cell_is_not_run_again(answer: Answer, work: Path, tiny_root: Path) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (work / "cells").iterdir()}

    before = times()
    next(iter((work / "cells").glob("*-vanilla-*"))).write_text("cut off")
    again = run(work, tiny_root, "--methods", "untrained,vanilla", "--json")
    assert again.status == 0
    changed = {name for name, time in times().items() if before[name] != time}
    assert [name.split("-")[2] for name in changed] == ["vanilla"]
    first, second = (each.document["methods"]["vanilla"] for each in (answer, again))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_the_published_settings_train_differently(
    work: Path, tiny_root: Path, answer: Answer
) -> None:
    published = run(work, tiny_root, "--methods", "vanilla", "--preset", "paper", "--json")
    assert published.status == 0, published.stderr
    found = published.document
    assert (
        found["methods"]["vanilla"]["recall_at_1"]
        != answer.document["methods"]["vanilla"]["recall_at_1"]
    )
    assert any("epsilon" in each for each in found["deviations"])


def test_unreadable_media_are_left_out_or_refused(tmp_path: Path, tiny_root: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(tiny_root / "clotho", root / "clotho")
    sound = root / "clotho" / "development" / "sound 2.wav"
    sound.write_bytes(sound.read_bytes()[:100])
    only = ("--sources", "clotho", "--methods", "untrained")
    refused = run(tmp_path / "work", root, *only)
    assert refused.status == 2
    assert "clotho text-audio: 1 of 16 rows" in refused.stderr
    assert "the audio is cut off" in refused.stderr
    accepted = run(tmp_path / "work", root, *only, "--max-bad-share", "0.1")
    assert accepted.status == 0
    assert "clotho: 1 rows could not be used and are left out" in accepted.stderr


def test_results_of_other_code_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "own_method_of_a_test.py"
    digests = []
    for content in ("first = 1", "second = 2"):
        module.write_text(content)
        code_digest.cache_clear()
        digests.append(code_digest("own_method_of_a_test:Mine"))
    assert len({*digests, code_digest(None)}) == 3


def test_the_authors_caches_are_read_with_their_classes(tmp_path: Path) -> None:
    folder = write_caches(tmp_path / "features_storage")
    run: list[str | Path] = [
        "--caches",
        folder,
        "--encoder",
        "imagebind",
        "--sources",
        "esc50,llvip",
        "--seeds",
        "1",
    ]
    training = [
        "--batch-size",
        "4",
        "--epochs",
        "1",
        "--jobs",
        "1",
        "--methods",
        "untrained,vanilla",
    ]
    answer = answer_of(main, *run, *training, "--work", tmp_path / "work", "--json")
    assert answer.status == 0, answer.stderr
    assert answer.document["methods"]["untrained"]["acc"] == 1
    assert answer.document["deviations"][0] == "Features are imported from the authors' caches."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "llvip: the cache .*llvip_test_imagebind.h5 is missing"),
        ("narrow", r"sample 'a0' has shape \(2, 768\), expected \(2, 1024\)"),
        ("cut", "cannot be read as HDF5, it may be half-downloaded"),
        ("stranger", "the text of sample 'a0__dog__0' is that of no class"),
    ],
)
def test_caches_that_do_not_fit_are_refused(tmp_path: Path, change: str, words: str) -> None:
    folder = write_caches(tmp_path / "features_storage")
    path = folder / "llvip_test_imagebind.h5"
    if change == "narrow":
        write_cache(path, {"a0": np.ones((2, 768))})
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif change == "stranger":
        stranger = np.random.default_rng(8).normal(size=(2, 1024))
        write_cache(folder / "esc50_train_imagebind.h5", {"a0__dog__0": stranger})
    else:
        path.unlink()
    source = "esc50" if change == "stranger" else "llvip"
    with pytest.raises(InvalidSource, match=words):
        read_caches(folder, source, choose_encoder("imagebind"))


def write_cache(path: Path, rows: dict[str, np.ndarray]) -> None:
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            file[key] = values.astype(np.float32)


def write_caches(folder: Path) -> Path:
    """ESC-50 with two classes, whose sounds lie at their texts, and LLVIP."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    texts = {name: 100 * draws.normal(size=1024) for name in ("dog", "rain")}
    write_cache(folder / "esc50_class_imagebind.h5", texts)
    for split in ("train", "test"):
        rows = {}
        for number in range(8):
            name = ("dog", "rain")[number % 2]
            near = texts[name] + 20 * draws.normal(size=1024)
            rows[f"a{number}__{name}__{number % 2}"] = np.stack([texts[name], near])
        write_cache(folder / f"esc50_{split}_imagebind.h5", rows)
        pairs = {f"{split}-{number}": draws.normal(size=(2, 1024)) for number in range(8)}
        write_cache(folder / f"llvip_{split}_imagebind.h5", pairs)
    return folder


def test_synthetic_features_have_the_published_lengths_and_repeat_texts(tmp_path: Path) -> None:
    chosen = ChosenEncoder("synthetic-languagebind", 768)
    files = write_synthetic(tmp_path, chosen, ["esc50"], 0.001, 0)
    features = read_features(Path({name: path for name, path, _ in files}["esc50"]))
    train = features["train"]
    assert train.by_modality["audio"].shape == (256, 768)
    assert np.linalg.norm(train.by_modality["audio"], axis=1) == pytest.approx(14.3, rel=1e-4)
    assert len(np.unique(train.by_modality["text"], axis=0)) <= 50
