"""Exports, read back as Qdrant, PostgreSQL and readers of Parquet and Arrow would read them."""

import csv
import io
import json
import re
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workers.serve.collections.segments import Entry

from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import feature
from tests.unit.serve.collections.test_collection_routes import image_query, item
from tests.unit.serve.served_versions import load_version

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


def points(filled: Searching) -> list[dict[str, Any]]:
    response = filled.ask("GET", "/things/export?format=qdrant")
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_each_line_is_a_point_that_qdrant_takes(filled: Searching) -> None:
    exported = points(filled)
    assert len(exported) == 4
    for point in exported:
        assert set(point) == {"id", "vector", "payload"}
        assert str(uuid.UUID(point["id"])) == point["id"]
        assert len(point["vector"]) == 6
        assert isinstance(point["payload"], dict)
    by_id = {point["payload"]["_cmcl"]["id"]: point for point in exported}
    assert set(by_id) == {"image-0", "image-1", "image-2", 'odd, "id"'}
    assert by_id["image-1"]["payload"]["text"] == AWKWARD
    assert by_id["image-1"]["payload"]["_cmcl"]["version"] == "scenes@1"
    np.testing.assert_allclose(by_id["image-1"]["vector"], expected(filled, "image", 1), atol=1e-6)


def test_points_keep_their_ids_from_export_to_export(filled: Searching) -> None:
    assert {point["id"] for point in points(filled)} == {point["id"] for point in points(filled)}


def test_the_csv_is_read_back_as_it_was(filled: Searching) -> None:
    response = filled.ask("GET", "/things/export?format=pgvector")
    rows = list(csv.DictReader(io.StringIO(response.text)))
    by_id = {row["id"]: row for row in rows}
    assert set(by_id) == {"image-0", "image-1", "image-2", 'odd, "id"'}
    assert json.loads(by_id["image-2"]["payload"]) == {"n": 2, "text": AWKWARD}
    assert by_id['odd, "id"']["payload"] == ""
    assert re.fullmatch(r"\[[^\s\]]+\]", by_id["image-2"]["embedding"])
    vector = json.loads(by_id["image-2"]["embedding"])
    np.testing.assert_allclose(vector, expected(filled, "image", 2), atol=1e-6)


def test_the_table_has_the_columns_of_the_csv_and_the_models_width(filled: Searching) -> None:
    ddl = filled.ask("GET", "/things/export?format=pgvector-ddl&table=pictures").text
    header = filled.ask("GET", "/things/export?format=pgvector").text.splitlines()[0]
    body = ddl[ddl.index("create table pictures (") :]
    columns = re.findall(r"^    (\w+) ", body, re.MULTILINE)
    assert columns == header.split(",")
    assert "embedding vector(6) not null" in body
    assert "hnsw (embedding vector_ip_ops)" in body


@pytest.mark.parametrize("format_", ["parquet", "arrow"])
def test_a_table_has_every_live_row_and_names_version_and_revision(
    filled: Searching, format_: str
) -> None:
    content = filled.ask("GET", f"/things/export?format={format_}").content
    if format_ == "parquet":
        table = pq.read_table(pa.BufferReader(content))
    else:
        table = pa.ipc.open_stream(content).read_all()
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
    content = searching.ask("GET", f"/things/export?format={format_}").content
    source = pa.BufferReader(content)
    table = pq.read_table(source) if format_ == "parquet" else pa.ipc.open_stream(source).read_all()
    assert table.column_names == ["id", "modality", "payload", "vector"]
    assert len(table) == 0


def test_a_parquet_file_is_made_of_row_groups(
    filled: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.serve.collections.exports._GROUP_BYTES", 2 * 4 * 6)
    content = filled.ask("GET", "/things/export?format=parquet").content
    file = pq.ParquetFile(pa.BufferReader(content))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [2, 1, 1]
    assert len(file.read()) == 4


def test_an_export_names_version_and_revision(filled: Searching) -> None:
    response = filled.ask("GET", "/things/export?format=pgvector")
    assert response.headers["x-model-version"] == "1"
    assert response.headers["x-collection-revision"] == "3"


HUGE = '{"n":100000000000000000000,"deep":[{"m":-1e300,"k":12345678901234567890123}]}'


def test_a_number_that_was_stored_is_answered_and_exported_as_it_is(searching: Searching) -> None:
    """Numbers beyond 64 bits are rejected now; stored ones must not break a search."""
    assert searching.collections is not None
    target = searching.collections.find("things", lambda _: True)
    entry = Entry("huge", "image", feature("image", 1), HUGE)
    written = searching.collections.write(target, [entry], lambda _: True)
    searching.found("things", written.revision, query=image_query(1))
    response = searching.ask("POST", "/things/search", {"query": image_query(1)})
    assert f'"payload":{HUGE}' in response.text
    [point] = points(searching)
    del point["payload"]["_cmcl"]
    assert point["payload"] == json.loads(HUGE)
    assert isinstance(point["payload"]["n"], int)
    rows = csv.DictReader(io.StringIO(searching.ask("GET", "/things/export?format=pgvector").text))
    assert next(rows)["payload"] == HUGE
