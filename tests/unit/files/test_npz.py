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


def test_text_ids_and_labels_are_kept(path: Path) -> None:
    ids = np.array([f"bild-ä-{row}" for row in range(20)])
    labels = np.array([b"cat", b"dog"] * 10)
    write_npz(path, {**arrays(), "id": ids, "label": labels})
    rows = rows_of(path)
    assert rows.column("id").to_pylist() == ids.tolist()
    assert rows.column("label").to_pylist()[:2] == ["cat", "dog"]


def test_nothing_is_ever_unpickled(path: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    ids = np.array([Malice(trap)] * 20, dtype=object)
    write_npz(path, {**arrays(), "id": ids})
    with pytest.raises(InvalidDataset, match="'id' is of Python objects, which are never unpickl"):
        rows_of(path)
    assert not trap.exists()


def test_an_array_stored_by_columns_says_how_to_store_it(path: Path) -> None:
    values = arrays()
    values["feature_a"] = np.asfortranarray(values["feature_a"])
    write_npz(path, values)
    with pytest.raises(InvalidDataset, match="'feature_a' is stored column by column"):
        rows_of(path)


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


def test_a_single_value_is_no_array_of_rows(path: Path) -> None:
    write_npz(path, {**arrays(), "label": np.array(3)})
    with pytest.raises(InvalidDataset, match="'label' is a single value"):
        rows_of(path)


def test_texts_wider_than_permitted_are_refused(path: Path) -> None:
    write_npz(path, {**arrays(), "id": np.array(["x" * 5000] * 20)})
    with pytest.raises(InvalidDataset, match="'id' has texts of 20000 bytes; at most 4096"):
        rows_of(path)


def test_bytes_that_are_no_text_are_refused_with_their_row(path: Path) -> None:
    labels = np.array([b"fine"] * 20)
    labels[7] = b"\xff\xfe"
    write_npz(path, {**arrays(), "label": labels})
    with pytest.raises(InvalidDataset, match="'label' is no UTF-8 text in row 7"):
        rows_of(path)
