"""Migration of stored vectors from file to file: exact if nothing was lost, otherwise refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cmcl.contract.version import VersionManifest
from tests.unit.benchmarks.tiny_stream import features
from tests.unit.inspect.conftest import LOSSY, ROOMY, grow, spec_of
from workers.inspect.migrate import Migrated, MigrationQuestion, migrate
from workers.inspect.versions import Unanswerable, find_version
from workers.model.artifact import save_heads
from workers.storage import layout
from workers.storage.local import LocalStore
from workers.storage.object_store import ObjectStore
from workers.storage.versions import entry_for
from workers.train.versions import read_heads

QUESTION = MigrationQuestion("m", 1, 3, "v")


def vectors(store: ObjectStore, version: int, rows: int = 30) -> torch.Tensor:
    """Unit vectors of fresh rows as a version gives them."""
    heads = read_heads(store, find_version(store, "m", version))
    raw_NF = torch.from_numpy(features("x_vt", 50, rows)[0])
    return heads.embed("v", raw_NF)


def migrated(
    store: ObjectStore, folder: Path, stored: np.ndarray, question: MigrationQuestion = QUESTION
) -> tuple[Migrated, np.ndarray]:
    np.save(folder / "in.npy", stored)
    answer = migrate(store, question, folder / "in.npy", folder / "out.npy")
    return answer, np.load(folder / "out.npy")


def test_a_roomy_head_migrates_every_row_exactly(roomy_store: ObjectStore, tmp_path: Path) -> None:
    answer, out_NE = migrated(roomy_store, tmp_path, vectors(roomy_store, 1).numpy())
    assert answer.exact
    assert (answer.rank, answer.width) == (13, ROOMY)
    assert out_NE.dtype == np.float32
    assert np.abs(out_NE - vectors(roomy_store, 3).numpy()).max() < 1e-5
    assert answer.held_out["ds-1"].error < 1e-5
    assert answer.held_out["ds-1"].cosine_percentile_1 > 1 - 1e-6


def test_a_narrow_head_errs_as_its_moments_predict(store: ObjectStore, tmp_path: Path) -> None:
    answer, out_NE = migrated(store, tmp_path, vectors(store, 1).numpy())
    held_out = answer.held_out["ds-1"]
    assert not answer.exact
    assert answer.rank == LOSSY
    assert 0.05 < answer.predicted_error < 0.5
    assert held_out.error == pytest.approx(answer.predicted_error, rel=0.5)
    assert held_out.cosine_mean > held_out.cosine_unmigrated
    expected_NE = vectors(store, 3).numpy()
    assert (out_NE * expected_NE).sum(axis=1).mean() == pytest.approx(
        held_out.cosine_mean, abs=0.02
    )
    assert np.linalg.norm(out_NE, axis=1) == pytest.approx(np.ones(len(out_NE)), abs=1e-5)


def test_only_datasets_of_the_modality_are_measured(store: ObjectStore, tmp_path: Path) -> None:
    question = replace(QUESTION, from_version=3, to_version=3, modality="t")
    answer, _ = migrated(store, tmp_path, vectors(store, 3).numpy(), question)
    assert set(answer.held_out) == {"ds-1", "ds-3"}
    answer, _ = migrated(
        store, tmp_path, vectors(store, 3).numpy(), replace(question, modality="a")
    )
    assert answer.held_out == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"to_version": 7}, "no version 7: the store has versions 1 to 3"),
        ({"modality": "a"}, "version 1 has learned nothing of modality 'a'"),
        ({"modality": "unused"}, "version 1 has learned nothing of modality 'unused'"),
        ({"modality": "smell"}, "has no modality 'smell'"),
        ({"most_error": 0.01}, "rank 6 of 6, condition .* more than the permitted 0.01"),
        ({"from_version": 2, "to_version": 1, "modality": "a"}, "by different first datasets"),
    ],
)
def test_what_cannot_be_migrated_is_reported_and_not_written(
    store: ObjectStore, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    out = tmp_path / "out.npy"
    out.write_bytes(b"as before")
    with pytest.raises(Unanswerable, match=words):
        migrated(store, tmp_path, np.ones((3, LOSSY), np.float32), replace(QUESTION, **changes))
    assert out.read_bytes() == b"as before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.npy"]


def zero_head(tmp_path: Path) -> LocalStore:
    """A version whose head of v maps everything to zero, with a valid manifest."""
    store = LocalStore(tmp_path / "store")
    grow(store, tmp_path, spec_of(LOSSY), ("one_vt",))
    manifest = find_version(store, "m", 1)
    heads = read_heads(store, manifest)
    data = save_heads(heads.replaced({"v": heads.weights["v"] * 0}))
    store.put(layout.version_file("m", 1, layout.HEADS), data)
    files = {**manifest.files, layout.HEADS: entry_for(data)}
    changed = VersionManifest.model_validate({**manifest.model_dump(), "files": files})
    key = layout.version_file("m", 1, layout.MANIFEST)
    store.put(key, changed.model_dump_json().encode())
    return store


def test_a_head_of_rank_0_is_refused(tmp_path: Path) -> None:
    question = replace(QUESTION, to_version=1)
    with pytest.raises(Unanswerable, match="'v' cannot be migrated: rank 0"):
        migrated(zero_head(tmp_path), tmp_path, np.ones((3, LOSSY), np.float32), question)


def with_values(row: int, value: float) -> np.ndarray:
    rows_NE = np.ones((3, LOSSY), np.float32)
    rows_NE[row] = value
    return rows_NE


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (np.ones((3, LOSSY + 1), np.float32), r"has shape \(3, 7\), it must be rows × 6"),
        (np.ones(LOSSY, np.float32), r"has shape \(6,\)"),
        (np.ones((3, LOSSY)), "holds float64, it must be float32"),
        (np.ones((0, LOSSY), np.float32), "has no rows"),
        (with_values(1, np.nan), "row 1 has NaN or infinity"),
        (with_values(2, 0), "row 2 is all zeros"),
    ],
)
def test_vectors_that_are_none_are_refused(
    store: ObjectStore, tmp_path: Path, stored: np.ndarray, words: str
) -> None:
    with pytest.raises(Unanswerable, match=words):
        migrated(store, tmp_path, stored)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_a_file_that_is_no_array_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    text, archive = tmp_path / "text.npy", tmp_path / "archive.npz"
    text.write_text("no array")
    np.savez(archive, x=np.ones(3))
    for path in (text, archive, tmp_path / "missing.npy"):
        with pytest.raises(Unanswerable, match=path.name):
            migrate(store, QUESTION, path, tmp_path / "out.npy")
