"""npz: nothing is unpickled, expansion is bounded, and errors name the defect."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cmcl.contract.errors import InvalidDataset
from tests.unit.files.user_files import arrays, rows_of, write_npz, write_packed_npz


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "theirs"


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write_members(path: Path, members: list[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)


def both() -> list[tuple[str, bytes]]:
    return [(f"{name}.npy", npy(values_BI)) for name, values_BI in arrays().items()]


class Malice:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path, bytes]]:
        return Path.write_bytes, (self.path, b"unpickled")


def test_nothing_is_ever_unpickled(path: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    ids = np.array([Malice(trap)] * 20, dtype=object)
    write_npz(path, {**arrays(), "id": ids})
    with pytest.raises(InvalidDataset, match="'id' is of Python objects, which are never unpickl"):
        rows_of(path)
    assert not trap.exists()


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_order_of_bytes_does_not_matter(path: Path, order: str) -> None:
    values = arrays()
    write_npz(path, {name: value.astype(f"{order}f4") for name, value in values.items()})
    found = rows_of(path).column("feature_a").to_pylist()
    assert np.array_equal(np.array(found, np.float32), values["feature_a"])


def test_an_archive_that_claims_to_unfold_without_bound_is_refused(path: Path) -> None:
    header = io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 4)}
    np.lib.format.write_array_header_1_0(header, described)
    members = [("feature_a.npy", header.getvalue())]
    described["shape"] = (10**9, 3)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, described)
    write_members(path, [*members, ("feature_b.npy", header.getvalue())])
    with pytest.raises(InvalidDataset, match="claim to unfold to 28"):
        rows_of(path)


def test_an_array_that_ends_before_its_shape_is_refused(path: Path) -> None:
    whole = both()
    write_members(path, [(whole[0][0], whole[0][1][:-8]), whole[1]])
    with pytest.raises(InvalidDataset, match="array 'feature_a' ends 8 bytes too early"):
        rows_of(path)


def test_an_array_that_is_there_twice_is_refused(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        write_members(path, [*both(), both()[0]])
    with pytest.raises(InvalidDataset, match="'feature_a' is there more than once"):
        rows_of(path)


def test_an_index_without_bound_is_not_read(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(260):
            info = zipfile.ZipInfo(f"{number}.npy")
            info.comment = b"x" * 65_000
            archive.writestr(info, b"")
    assert path.stat().st_size > 16 << 20
    with pytest.raises(InvalidDataset, match="its index has more than 16777216 bytes"):
        rows_of(path)


def test_a_damaged_packed_array_is_refused(path: Path) -> None:
    write_packed_npz(path, arrays(rows=400))
    data = bytearray(path.read_bytes())
    data[1000] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(InvalidDataset, match="it cannot be read as npz"):
        rows_of(path)


NO_TEXT = np.array([b"fine"] * 20)
NO_TEXT[7] = b"\xff\xfe"


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("feature_a", np.asfortranarray(arrays()["feature_a"]), "is stored column by column"),
        ("label", np.array(3), "'label' is a single value"),
        ("id", np.array(["x" * 5000] * 20), "'id' has texts of 20000 bytes; at most 4096"),
        ("label", NO_TEXT, "'label' is no UTF-8 text in row 7"),
    ],
)
def test_an_array_that_is_no_column_says_why(
    path: Path, name: str, values: np.ndarray, words: str
) -> None:
    write_npz(path, {**arrays(), name: values})
    with pytest.raises(InvalidDataset, match=words):
        rows_of(path)
