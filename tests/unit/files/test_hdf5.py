"""HDF5: arrays, and no access to other files."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from cmcl.contract.errors import InvalidDataset
from tests.unit.files.user_files import (
    arrays,
    features_of,
    rows_of,
    write_hdf5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs"


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


def test_groups_are_no_arrays(path: Path) -> None:
    with h5py.File(path, "w") as root:
        root.create_group("feature_a").create_dataset("one", data=np.ones((2, 4)))
    with pytest.raises(InvalidDataset, match="'feature_a' is no dataset of numbers"):
        rows_of(path)


def test_rows_that_were_promised_but_never_written_are_a_bomb(path: Path) -> None:
    with h5py.File(path, "w") as root:
        for name, width in (("feature_a", 4), ("feature_b", 3)):
            root.create_dataset(name, (10**9, width), np.float32, chunks=(1024, width))
    assert path.stat().st_size < 10_000
    with pytest.raises(InvalidDataset, match="claim to unfold to 28000000000"):
        rows_of(path)
