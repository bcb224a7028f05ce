"""HDF5: both layouts, and no access to other files."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmcl.contract.errors import InvalidDataset
from tests.unit.files.user_files import (
    URI,
    arrays,
    features_of,
    opened,
    rows_of,
    write_hdf5,
)
from workers.files import hdf5
from workers.files.columns import Side, UserFile

# The encoders of the paper give each modality the same width.
SAME_WIDTH = (Side("feature_a", "image", 4), Side("feature_b", "text", 4))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs"


def write_paper(path: Path, values_BMI: np.ndarray, modalities: list[str] | None = None) -> None:
    """Write the layout of FeatureStorage in the paper's code: a dataset per row, named by its id."""
    with h5py.File(path, "w") as root:
        for row, values_MI in enumerate(values_BMI):
            root.create_dataset(f"clip_{row:03d}", data=values_MI)
        if modalities:
            root.attrs["modalities"] = modalities


def paper_rows(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    file = UserFile(path, URI, opened(path).sha256, SAME_WIDTH)
    batches = list(hdf5.read(file))
    ids = [text for batch in batches for text in batch.column("id").to_pylist()]
    first, second = (
        np.concatenate([np.array(batch.column(name).to_pylist()) for batch in batches])
        for name in ("feature_a", "feature_b")
    )
    return ids, first, second


def random_rows(rows: int, lines: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(rows, lines, 4)).astype(np.float32)


def test_the_paper_s_two_lines_are_the_pair_in_its_order(path: Path) -> None:
    values_BMI = random_rows(12, 2)
    write_paper(path, values_BMI)
    ids, first, second = paper_rows(path)
    assert ids == [f"clip_{row:03d}" for row in range(12)]
    assert np.array_equal(first, values_BMI[:, 0])
    assert np.array_equal(second, values_BMI[:, 1])


def test_of_more_lines_the_attribute_says_which_is_which(path: Path) -> None:
    values_BMI = random_rows(5, 3)
    write_paper(path, values_BMI, ["text", "audio", "image"])
    _, first, second = paper_rows(path)
    assert np.array_equal(first, values_BMI[:, 2])
    assert np.array_equal(second, values_BMI[:, 0])


@pytest.mark.parametrize(
    ("lines", "named", "words"),
    [
        (3, None, f"{URI}: its rows have shape .3, 4.; either"),
        (2, ["image", "audio"], "attribute 'modalities' must name 'text' once"),
        (3, ["image", "image", "text"], "attribute 'modalities' must name 'image' once"),
    ],
)
def test_lines_that_are_not_known_are_refused(
    path: Path, lines: int, named: list[str] | None, words: str
) -> None:
    write_paper(path, random_rows(5, lines), named)
    with pytest.raises(InvalidDataset, match=words):
        paper_rows(path)


def test_rows_of_different_shapes_are_refused(path: Path) -> None:
    write_paper(path, random_rows(5, 2))
    with h5py.File(path, "a") as root:
        root.create_dataset("late", data=np.ones((1, 4), np.float32))
    with pytest.raises(InvalidDataset, match=r"'late' must be \(modalities, width\).*\(1, 4\)"):
        paper_rows(path)


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_what_h5py_compresses_by_itself_is_read(path: Path, compression: str) -> None:
    values = arrays()
    with h5py.File(path, "w") as root:
        for name, values_BI in values.items():
            root.create_dataset(
                name, data=values_BI, compression=compression, shuffle=True, fletcher32=True
            )
    assert np.array_equal(features_of(rows_of(path), "feature_a"), values["feature_a"])


def link(root: h5py.File, secret: Path) -> None:
    root["feature_a"] = h5py.ExternalLink(str(secret), "feature_a")


def virtual(root: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((20, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "feature_a", (20, 4))
    root.create_virtual_dataset("feature_a", layout)


def external(root: h5py.File, secret: Path) -> None:
    places = [(str(secret), 0, 320)]
    root.create_dataset("feature_a", (20, 4), np.float32, external=places)


def scaled(root: h5py.File, secret: Path) -> None:
    root.create_dataset("feature_a", data=arrays()["feature_a"], scaleoffset=3)


def large_chunks(root: h5py.File, secret: Path) -> None:
    root.create_dataset("feature_a", (10**8, 4), np.float32, chunks=(10**8, 4))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (link, "'feature_a' is a link; links are not followed"),
        (virtual, "'feature_a' is stored in other files"),
        (external, "'feature_a' is stored in other files"),
        (scaled, "filter 6; gzip, lzf and no compression are read"),
        (large_chunks, "chunks of 1600000000 bytes, at most 268435456"),
    ],
)
def test_a_file_reads_no_other_file_no_filter_and_no_large_chunk(
    path: Path, tmp_path: Path, write: Callable[[h5py.File, Path], None], words: str
) -> None:
    write_hdf5(tmp_path / "secret", arrays())
    write_hdf5(path, {"feature_b": arrays()["feature_b"]})
    with h5py.File(path, "a") as root:
        write(root, tmp_path / "secret")
    with pytest.raises(InvalidDataset, match=words):
        rows_of(path)


def test_groups_are_no_rows(path: Path) -> None:
    with h5py.File(path, "w") as root:
        root.create_group("clips").create_dataset("one", data=np.ones((2, 4)))
    with pytest.raises(InvalidDataset, match="'clips' is no dataset of numbers"):
        rows_of(path)


def test_rows_that_were_promised_but_never_written_are_a_bomb(path: Path) -> None:
    with h5py.File(path, "w") as root:
        for name, width in (("feature_a", 4), ("feature_b", 3)):
            root.create_dataset(name, (10**9, width), np.float32, chunks=(1024, width))
    assert path.stat().st_size < 10_000
    with pytest.raises(InvalidDataset, match="claim to unfold to 28000000000"):
        rows_of(path)
