"""Rows are the same in every format; other files are rejected."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cmcl.contract.errors import InvalidDataset
from cmcl.storage.versions import digests_of_file
from tests.unit.files.user_files import (
    NAMED,
    URI,
    WRITERS,
    Arrays,
    arrays,
    features_of,
    opened,
    rows_of,
)
from workers.files.columns import ROWS_AT_ONCE
from workers.files.formats import format_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # The name says nothing, and must not.
    return tmp_path / "file.parquet"


def written(form: str, path: Path, values: Arrays) -> pa.Table:
    WRITERS[form](path, values)
    return rows_of(path)


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_very_same_features(form: str, kind: str, path: Path) -> None:
    values = arrays(kind=kind)
    rows = written(form, path, values)
    for column, expected_BI in values.items():
        assert rows.schema.field(column).type.value_type == pa.from_numpy_dtype(kind)
        assert np.array_equal(features_of(rows, column), expected_BI)


@pytest.mark.parametrize("form", WRITERS)
def test_float64_becomes_the_nearest_float32(form: str, path: Path) -> None:
    values = arrays(kind="float64")
    rows = written(form, path, values)
    for column, expected_BI in values.items():
        assert np.array_equal(features_of(rows, column), expected_BI.astype(np.float32))


@pytest.mark.parametrize("form", WRITERS)
def test_a_number_beyond_float32_becomes_infinity(form: str, path: Path) -> None:
    values = arrays(kind="float64")
    values["feature_b"][3, 1] = 1e300
    assert np.isinf(features_of(written(form, path, values), "feature_b")[3, 1])


@pytest.mark.parametrize("kind", ["int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("form", WRITERS)
def test_whole_numbers_are_no_features(form: str, kind: str, path: Path) -> None:
    values = arrays()
    values["feature_b"] = np.ones((20, 3), kind)
    WRITERS[form](path, values)
    with pytest.raises(InvalidDataset, match=f"^{URI}: .*'feature_b' must be .*float32"):
        rows_of(path)


@pytest.mark.parametrize("form", WRITERS)
def test_another_width_is_refused_before_rows_are_read(form: str, path: Path) -> None:
    values = arrays()
    values["feature_a"] = np.ones((20, 5), np.float32)
    WRITERS[form](path, values)
    expected = "'feature_a' has width 5, the model declares 4 for image"
    with pytest.raises(InvalidDataset, match=expected):
        rows_of(path)


@pytest.mark.parametrize("form", WRITERS)
def test_nothing_but_its_beginning_is_no_file(form: str, path: Path) -> None:
    WRITERS[form](path, arrays(rows=400))
    whole = path.read_bytes()
    for kept in (12, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:kept])
        with pytest.raises(InvalidDataset, match=f"^{URI}: "):
            rows_of(path)


@pytest.mark.parametrize("form", WRITERS)
def test_damaged_bytes_give_an_error_message_or_rows(form: str, path: Path) -> None:
    WRITERS[form](path, arrays(rows=60))
    whole = path.read_bytes()
    for position in range(0, len(whole) - 4, max(1, len(whole) // 60)):
        path.write_bytes(whole[:position] + b"\xff\xfe\x7f\xff" + whole[position + 4 :])
        try:
            rows_of(path)
        except InvalidDataset as error:
            assert str(error).startswith(f"{URI}: ")  # noqa: PT017 - other errors fail the test


@pytest.mark.parametrize("form", NAMED)
def test_arrays_may_be_called_by_their_modalities(form: str, path: Path) -> None:
    values = arrays()
    rows = written(form, path, {"text": values["feature_b"], "image": values["feature_a"]})
    assert np.array_equal(features_of(rows, "feature_a"), values["feature_a"])
    assert np.array_equal(features_of(rows, "feature_b"), values["feature_b"])


TEXT = arrays()["feature_b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": arrays()["feature_a"]}, "one array must be called 'feature_a' or 'image'"),
        ({"feature_b": None}, "must be called 'feature_b' or 'text'; the file has: feature_a"),
        ({"feature_b": TEXT[:-1].copy()}, "feature_a has 20, feature_b has 19"),
        (
            {"feature_b": TEXT.reshape(20, 3, 1)},
            r"must be \(rows, width\), has shape \(20, 3, 1\)",
        ),
        ({"label": np.zeros(20, np.float32)}, "'label' must be text or whole numbers, is "),
        ({"label": np.zeros((20, 1), np.int32)}, r"'label' must be \(rows,\), has shape \(20, 1\)"),
    ],
)
@pytest.mark.parametrize("form", NAMED)
def test_arrays_that_are_no_columns_are_refused(
    form: str, path: Path, changes: dict[str, np.ndarray | None], words: str
) -> None:
    values = {name: each for name, each in {**arrays(), **changes}.items() if each is not None}
    WRITERS[form](path, values)
    with pytest.raises(InvalidDataset, match=words):
        rows_of(path)


@pytest.mark.parametrize("form", NAMED)
def test_unexpected_array_names_are_reported(form: str, path: Path) -> None:
    WRITERS[form](path, {"y": arrays()["feature_a"], "x": TEXT})
    with pytest.raises(InvalidDataset, match="'feature_a' or 'image'; the file has: x, y"):
        rows_of(path)


@pytest.mark.parametrize("form", NAMED)
def test_made_ids_are_unique_and_repeatable(form: str, path: Path) -> None:
    first = written(form, path, arrays()).column("id").to_pylist()
    assert first == rows_of(path).column("id").to_pylist()
    assert len(set(first)) == 20
    assert first[3] == f"{digests_of_file(path).sha256[:16]}-3"
    other = written(form, path, arrays(rows=21)).column("id").to_pylist()
    assert not set(first) & set(other)


@pytest.mark.parametrize("form", NAMED)
def test_numbers_as_labels_become_text_and_other_arrays_do_no_harm(form: str, path: Path) -> None:
    others = {"notes": np.zeros((2, 2, 2)), "one": np.ones(1)}
    rows = written(form, path, {**arrays(), "label": np.arange(20) % 3, **others})
    assert rows.column("label").to_pylist()[:4] == ["0", "1", "2", "0"]
    assert rows.column_names == ["id", "label", "feature_a", "feature_b"]


def test_ids_and_labels_of_arrays_are_kept(path: Path) -> None:
    ids = [f"bild-ä-{row}" for row in range(20)]
    labels = np.array([b"cat", b"dog"] * 10)
    rows = written("npz", path, {**arrays(), "id": np.array(ids), "label": labels})
    assert rows.column("id").to_pylist() == ids
    assert rows.column("label").to_pylist() == ["cat", "dog"] * 10


def test_bfloat16_becomes_float32_without_loss(path: Path) -> None:
    values = arrays()
    # The upper halves of numbers that have nothing in their lower ones.
    exact = {
        name: (values_BI.view(np.uint32) & 0xFFFF0000).view(np.float32)
        for name, values_BI in values.items()
    }
    header, body = {}, b""
    for name, values_BI in exact.items():
        halves = (values_BI.view(np.uint32) >> 16).astype("<u2").tobytes()
        place = [len(body), len(body) + len(halves)]
        header[name] = {"dtype": "BF16", "shape": values_BI.shape, "data_offsets": place}
        body += halves
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    rows = rows_of(path)
    for column, expected_BI in exact.items():
        assert np.array_equal(features_of(rows, column), expected_BI)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"id,feature_a\n1,2\n", "neither Parquet nor Arrow IPC, npz or safetensors"),
        (b"PAREabcdPARE", "encrypted Parquet"),
        (b"\x93NUMPY\x01\x00v\x00", "a single NumPy array; save both sides"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip as a whole"),
        # Its footer's length, and the first random byte of what is encrypted.
        (b"PARE\x2c\x00\x00\x00{", "encrypted Parquet; write it without encryption"),
        (b"FEA1\x00", "Feather version 1"),
        (b"\x89HDF\r\n\x1a\n", "it is HDF5; save the arrays"),
        (b"PK\x05\x06" + b"\0" * 18, "a zip archive with nothing in it"),
        (b"\x89PNG\r\n\x1a\n", "neither Parquet nor"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_an_unsupported_file_is_rejected_with_its_kind(
    path: Path, content: bytes, words: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(InvalidDataset, match=words):
        format_of(path, URI)


def test_a_name_does_not_make_a_format(tmp_path: Path) -> None:
    WRITERS["npz"](tmp_path / "features.h5", arrays())
    assert format_of(tmp_path / "features.h5", URI).name == "npz"
    assert rows_of(tmp_path / "features.h5").num_rows == 20


def test_rows_are_read_in_batches_of_any_file(path: Path) -> None:
    WRITERS["npz"](path, arrays(rows=2 * ROWS_AT_ONCE + 5))
    file = opened(path)
    sizes = [batch.num_rows for batch in format_of(path, URI).read(file)]
    assert sizes == [ROWS_AT_ONCE, ROWS_AT_ONCE, 5]
