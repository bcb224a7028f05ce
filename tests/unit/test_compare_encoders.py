"""Which of several encoders pairs better: `cmcl encoder compare`."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cmcl.cli import main as cli
from cmcl.contract.errors import InvalidDataset
from workers.compare_encoders import agreements, compare, compare_files, main
from workers.files.shards import Rows
from workers.train.dataset import paired_rows

PAIRS, LATENT, WIDTH = 200, 6, 24


def sides(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of the same pairs; an encoder with more noise on the first side sees less of it."""
    shared = np.random.default_rng(1).normal(size=(PAIRS, LATENT))
    random = np.random.default_rng(2 + seed)
    first = shared @ random.normal(size=(LATENT, WIDTH))
    first += noise * np.random.default_rng(3 + seed).normal(size=first.shape)
    second = shared @ np.random.default_rng(4).normal(size=(LATENT, 8))
    return first.astype(np.float32), second.astype(np.float32)


def write(
    path: Path, features: tuple[np.ndarray, np.ndarray], order: np.ndarray | None = None
) -> Path:
    order = np.arange(PAIRS) if order is None else order
    columns: dict[str, pa.Array] = {"id": pa.array([f"pair-{row}" for row in order])}
    for name, values in zip(("feature_a", "feature_b"), features, strict=True):
        flat = pa.array(values[order].ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Two encoders; the files of the second one has its pairs in another order, and lacks ten."""
    order = np.random.default_rng(0).permutation(PAIRS)[10:]
    return {
        "good": write(tmp_path / "good.parquet", sides(1.0)),
        "poor": write(tmp_path / "poor.parquet", sides(6.0, seed=10), order),
    }


def test_the_encoder_that_sees_more_of_the_pairs_is_first(files: dict[str, Path]) -> None:
    good, poor = files["good"], files["poor"]
    found = compare_files([poor, good])
    assert (found.pairs, found.splits) == (PAIRS - 10, 5)
    first, second = found.features
    assert (first.name, second.name) == (str(good), str(poor))
    assert (first.widths, first.behind, first.is_behind) == ((WIDTH, 8), 0, False)
    assert LATENT - 1.5 < first.agreement <= 8
    assert 1 < second.agreement < first.agreement - 1
    assert second.is_behind
    assert found.verdict == f"{good} pairs best"


def test_two_views_of_the_same_pairs_pair_better_together(
    files: dict[str, Path], tmp_path: Path
) -> None:
    other = write(tmp_path / "other.parquet", sides(6.0, seed=20))
    found = compare_files([files["poor"], other], concatenated=True)
    both, *alone = found.features
    assert both.name == f"{files['poor']} + {other}"
    # The second sides are the same features, and count once: pairs are matched by their ids.
    assert both.widths == (2 * WIDTH, 8)
    assert all(each.is_behind for each in alone)


def test_an_encoder_is_not_better_than_itself_in_other_coordinates() -> None:
    first, second = sides(2.0)
    turned = first @ np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]
    encoders = {
        name: paired_rows(Rows(side.astype(np.float32), second, None))
        for name, side in {"as it is": first, "turned": 3 * turned}.items()
    }
    found = compare(encoders)
    assert found.features[1].behind < 1e-3
    assert "is not better than" in found.verdict


def test_heads_are_scored_on_pairs_that_they_have_not_seen() -> None:
    """Sides that have nothing in common agree in a training half by chance, and not in the other."""
    random = np.random.default_rng(0)
    first, second = (random.normal(size=(PAIRS, 100)).astype(np.float32) for _ in range(2))
    (choice,) = agreements(paired_rows(Rows(first, second, None)), [torch.arange(PAIRS) % 2 == 0])
    assert choice.score < 0.1


def test_equal_pairs_are_in_the_same_half() -> None:
    """Otherwise heads are scored on pairs that they were solved from: every pair is there twice, and means nothing."""
    random = np.random.default_rng(0)
    first, second = (
        np.tile(random.normal(size=(PAIRS // 2, 60)), (2, 1)).astype(np.float32) for _ in range(2)
    )
    (found,) = compare({"noise": paired_rows(Rows(first, second, None))}).features
    assert found.agreement < 0.5


def test_files_that_cannot_be_compared_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    few = write(tmp_path / "few.parquet", sides(1.0), np.arange(19))
    with pytest.raises(InvalidDataset, match="the files have 19 ids in common, at least 20"):
        compare_files([files["good"], few])
    first, second = sides(1.0)
    first[7] = np.nan
    wrong = write(tmp_path / "wrong.parquet", (first, second))
    with pytest.raises(InvalidDataset, match=r"wrong\.parquet: .*'feature_a' has NaN .* row 7"):
        compare_files([files["good"], wrong])
    rows = np.arange(PAIRS)
    rows[7] = 3
    repeated = write(tmp_path / "repeated.parquet", sides(1.0), rows)
    with pytest.raises(InvalidDataset, match=r"repeated\.parquet: row 7 repeats the id of row 3"):
        compare_files([files["good"], repeated])
    with pytest.raises(InvalidDataset, match=r"good\.parquet is given more than once"):
        compare_files([files["good"], files["good"]])


def test_the_command_prints_the_comparison_and_passes_an_error_on(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [str(path) for path in files.values()]
    assert cli(["encoder", "compare", *paths, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert [each["name"] for each in document["features"]] == paths
    assert main([paths[0], str(tmp_path / "few.parquet")]) == 2
    assert "few.parquet" in capfd.readouterr().err
