"""Exports, read back by readers of Parquet and Arrow."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import Scene, create, embedded, entries, feature
from tests.unit.serve.collections.test_collection_routes import image_query, item
from tests.unit.serve.served_versions import load_version
from workers.serve.collections.exports import exported as export_of
from workers.serve.collections.table import Row
from workers.serve.versions.loading import truncated

AWKWARD = 'a "quoted", comma\nand a line'


@pytest.fixture
def filled(searching: Searching) -> Searching:
    items = [item("image", n, payload={"n": n, "text": AWKWARD}) for n in range(4)]
    searching.add("things", [*items, {**item("text", 0), "id": 'odd, "id"'}])
    response = searching.ask("POST", "/things/items/delete", {"ids": ["image-3"]})
    searching.found("things", response.json()["revision"], query=image_query(1))
    return searching


def expected(filled: Searching, modality: str, number: int) -> np.ndarray:
    import torch

    heads = load_version(filled.store, "scenes", 1).heads
    vector: np.ndarray = heads.embed(modality, torch.tensor(feature(modality, number)[None]))[
        0
    ].numpy()
    return vector


def exported(searching: Searching, format_: str) -> pa.Table:
    response = searching.ask("GET", f"/things/export?format={format_}")
    assert response.headers["content-type"].startswith("application/vnd.apache.")
    assert response.headers["x-model-version"] == "1"
    source = pa.BufferReader(response.content)
    return pq.read_table(source) if format_ == "parquet" else pa.ipc.open_stream(source).read_all()


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_a_table_has_every_live_row_and_names_version_and_revision(
    filled: Searching, format_: str
) -> None:
    table = exported(filled, format_)
    assert table.schema.metadata[b"cmcl.version"] == b"scenes@1"
    assert table.schema.metadata[b"cmcl.revision"] == b"3"
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 6)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert set(rows) == {"image-0", "image-1", "image-2", 'odd, "id"'}
    assert json.loads(rows["image-2"]["payload"]) == {"n": 2, "text": AWKWARD}
    assert (rows['odd, "id"']["modality"], rows['odd, "id"']["payload"]) == ("text", None)
    np.testing.assert_allclose(rows["image-1"]["vector"], expected(filled, "image", 1), atol=1e-6)


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_a_table_without_rows_has_its_schema(searching: Searching, format_: str) -> None:
    searching.found("things", 1, query=image_query(1))
    table = exported(searching, format_)
    assert table.column_names == ["id", "modality", "payload", "vector"]
    assert len(table) == 0


def test_a_parquet_file_is_made_of_row_groups(
    filled: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.serve.collections.exports._GROUP_BYTES", 2 * 4 * 6)
    content = filled.ask("GET", "/things/export?format=parquet").content
    file = pq.ParquetFile(pa.BufferReader(content))
    counts = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert (sum(counts), max(counts)) == (4, 2)


HUGE = '{"n":100000000000000000000,"deep":[{"m":-1e300,"k":12345678901234567890123}]}'


def test_a_number_that_was_stored_is_answered_and_exported_as_it_is(searching: Searching) -> None:
    """Numbers beyond 64 bits are rejected now; stored ones must not break a search."""
    target = searching.collections.registry.existing("things", lambda _: True)
    revision = searching.collections.write(
        target, [Row("huge", "image", feature("image", 1), HUGE)]
    )
    searching.found("things", revision, query=image_query(1))
    response = searching.ask("POST", "/things/search", {"query": image_query(1)})
    assert f'"payload":{HUGE}' in response.text
    assert exported(searching, "arrow").column("payload").to_pylist() == [HUGE]


@pytest.mark.parametrize("vector_type", ["float32", "bit"])
def test_a_collection_of_shorter_vectors_is_exported_with_them(
    scene: Scene, vector_type: str
) -> None:
    create(scene.store, vector_type=vector_type, dimensions=3)
    scene.add(entries(0, 2))
    searched = scene.settle()
    table = pa.ipc.open_stream(b"".join(export_of(searched, "arrow"))).read_all()
    expected = truncated(np.stack([embedded(searched.version, "image", n) for n in (0, 1)]), 3)
    by_id = dict(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    np.testing.assert_allclose([by_id["image-0"], by_id["image-1"]], expected, atol=1e-6)
