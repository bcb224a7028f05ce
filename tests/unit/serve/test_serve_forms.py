"""Formats of requests and responses: JSON, base64, raw floats, Arrow, items."""

import base64
from collections.abc import Callable, Sequence

import httpx
import numpy as np
import pyarrow
import pytest

from tests.unit.serve.conftest import Replica
from tests.unit.serve.served_versions import SPEC
from workers.serve.versions.loading import Float32Array

RAW = "application/octet-stream"
ARROW = "application/vnd.apache.arrow.stream"
ROWS = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32)


def reference(shared: Replica, rows_BF: Float32Array = ROWS) -> Float32Array:
    return rows_of(shared.embed(input=rows_BF.tolist()))


def rows_of(response: httpx.Response) -> Float32Array:
    return np.array([each["embedding"] for each in response.json()["data"]], np.float32)


def post(
    shared: Replica, body: bytes, kind: str, accept: str = RAW, **parameters: str
) -> httpx.Response:
    query = {"model": "scenes", "modality": "image", **parameters}
    headers = {"content-type": kind, "accept": accept}
    return shared.run(
        lambda client: client.post("/v1/embeddings", params=query, content=body, headers=headers)
    )


def arrow_of(column: object) -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"feature": column})
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def arrow_rows(rows_BF: np.ndarray) -> bytes:
    return arrow_of(pyarrow.FixedSizeListArray.from_arrays(rows_BF.reshape(-1), rows_BF.shape[1]))


@pytest.mark.parametrize(
    ("body", "kind", "dtype"),
    [
        (ROWS.tobytes(), RAW, "float32"),
        (ROWS.astype(np.float64).tobytes(), RAW, "float64"),
        (ROWS.astype(np.float16).tobytes(), RAW, "float16"),
        (arrow_rows(ROWS), ARROW, "float32"),
        (arrow_of(ROWS.tolist()), ARROW, "float32"),
    ],
)
def test_rows_without_json_give_what_json_gives(
    shared: Replica, body: bytes, kind: str, dtype: str
) -> None:
    response = post(shared, body, kind, dtype=dtype)
    assert response.status_code == 200, response.text
    assert response.headers["x-model-version"] == "1"
    shape = (int(response.headers["x-rows"]), int(response.headers["x-width"]))
    got = np.frombuffer(response.content, "<f4").reshape(shape)
    np.testing.assert_allclose(got, reference(shared), atol=1e-3 if dtype == "float16" else 1e-6)


def packed(numbers: Sequence[float]) -> str:
    return base64.b64encode(np.array(numbers, np.float32).tobytes()).decode()


@pytest.mark.parametrize("written", [list, packed])
def test_items_of_several_modalities_are_answered_in_their_order(
    shared: Replica, written: Callable[[Sequence[float]], object]
) -> None:
    image = ROWS[0]
    text = np.arange(1, 5, dtype=np.float32) / 8
    items = [
        {"modality": "text", "feature": written(text.tolist())},
        {"modality": "image", "feature": packed(image.tolist())},
        {"modality": "text", "feature": written(text[::-1].tolist())},
    ]
    response = shared.embed(modality=None, input=items)
    got = [each["embedding"] for each in response.json()["data"]]
    alone = rows_of(shared.embed(modality="text", input=[text.tolist(), text[::-1].tolist()]))
    np.testing.assert_allclose(got[0], alone[0], atol=1e-6)
    np.testing.assert_allclose(got[1], reference(shared)[0], atol=1e-6)
    np.testing.assert_allclose(got[2], alone[1], atol=1e-6)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("body", "kind", "parameters", "message"),
    [
        (b"", RAW, {}, "the body has 0 bytes of float32; a feature of modality 'image' has 5"),
        (b"x" * 21, RAW, {}, "the body has 21 bytes"),
        (ROWS.tobytes(), RAW, {"dtype": "int8"}, "dtype is \"int8\"; permitted is 'float32'"),
        (ROWS.tobytes(), RAW, {"modality": "smell"}, 'modality is "smell"'),
        (ROWS.tobytes(), RAW, {"normalize": "yes"}, "permitted are true and false"),
        (ROWS.tobytes(), RAW, {"normalize": "1"}, "permitted are true and false"),
        (ROWS.tobytes(), RAW, {"bogus": "1"}, 'there is no field "bogus"; permitted are model'),
        (ROWS.tobytes(), RAW, {"input": "1"}, 'there is no field "input"'),
        (ROWS.tobytes(), RAW, {"dimensions": "7"}, "dimensions is 7; scenes@1 has 6"),
        (ROWS.tobytes(), RAW, {"dimensions": "x"}, 'dimensions is "x"; permitted is'),
        (ROWS.tobytes(), RAW, {"dimensions": "9" * 5000}, 'dimensions is "99999'),
        (ROWS.tobytes(), RAW, {"user": "u" * 257}, "permitted is a string of length <= 256"),
        (ROWS.tobytes(), RAW, {"encoding_format": "hex"}, "'float' or 'base64'"),
        (arrow_rows(ROWS), ARROW, {"bogus": "1"}, 'there is no field "bogus"'),
        (np.zeros((1, 5), np.float32).tobytes(), RAW, {}, "row 0 is all zeros"),
        (np.full((1, 5), np.nan, np.float32).tobytes(), RAW, {}, "row 0 has nan at position 0"),
        (np.full((1, 5), np.inf, np.float32).tobytes(), RAW, {}, "row 0 has inf at position 0"),
        (b"rubbish", ARROW, {}, "the body is no stream of Arrow"),
        (truncated(arrow_rows(ROWS)), ARROW, {}, "the body is no stream of Arrow"),
        (arrow_rows(ROWS[:, :4]), ARROW, {}, "has lists of [4] numbers"),
        (arrow_of([[1.0] * 5, None]), ARROW, {}, "has nulls"),
        (arrow_of([[1.0] * 5, [1.0] * 4]), ARROW, {}, "numbers; a feature of"),
        (arrow_of([1, 2]), ARROW, {}, "permitted are lists of float16"),
        (ROWS[:1].repeat(51, 0).tobytes(), RAW, {}, "input has 51 rows; permitted are 1 to 50"),
    ],
)
def test_wrong_bytes_are_named(
    shared: Replica, body: bytes, kind: str, parameters: dict[str, str], message: str
) -> None:
    response = post(shared, body, kind, **parameters)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_parameters_mean_what_the_fields_mean(shared: Replica) -> None:
    fields = {"dimensions": 6, "user": "somebody", "encoding_format": "base64", "normalize": False}
    parameters = {name: str(value).lower() for name, value in fields.items()}
    raw = post(shared, ROWS.tobytes(), RAW, "application/json", **parameters)
    assert raw.status_code == 200, raw.text
    in_json = shared.embed(None, input=ROWS.astype(float).tolist(), **fields)
    for ours, theirs in zip(raw.json()["data"], in_json.json()["data"], strict=True):
        got, wanted = (
            np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in (ours, theirs)
        )
        np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_a_binary_request_without_model_or_modality_names_the_field(shared: Replica) -> None:
    for missing in ("model", "modality"):
        query = {"model": "scenes", "modality": "image"}
        del query[missing]
        response = shared.run(
            lambda client, query=query: client.post(  # type: ignore[misc]
                "/v1/embeddings",
                params=query,
                content=ROWS.tobytes(),
                headers={"content-type": RAW},
            )
        )
        assert (response.status_code, response.json()["error"]["param"]) == (400, missing)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"modality": "image", "feature": "!!"}, "input[0] is not base64"),
        ({"modality": "image", "feature": "AAAA"}, "input[0] has 3 bytes, no whole float32"),
        ({"modality": "smell", "feature": [1]}, 'modality is "smell"'),
        ({"modality": "image", "data": "AAAA"}, "bound to no encoder"),
        (
            {"modality": "image", "text": "a", "data": "b"},
            "input[0] has text and data; permitted is exactly one",
        ),
        ({"modality": "image", "file": "a"}, 'there is no field "input[0].file"'),
    ],
)
def test_a_wrong_item_is_named(shared: Replica, item: dict[str, object], message: str) -> None:
    response = shared.embed(modality=None, input=[item])
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modality": "text", "feature": [1.0] * 3}, "input[2] has 3 numbers; a feature of"),
        ({"modality": "text", "feature": [0.0] * 4}, "input[2] is all zeros"),
        ({"modality": "text", "feature": packed([0.0] * 4)}, "input[2] is all zeros"),
        ({"modality": "text", "feature": "AAAA"}, "input[2] has 3 bytes"),
        ({"modality": "image", "feature": [1.0] * 4}, "input[2] has 4 numbers; a feature of"),
        (
            {"modality": "image", "feature": packed([1.0] * 4)},
            "input[2] has 4 numbers; a feature of",
        ),
        ({"modality": "smell", "feature": packed([1.0])}, 'modality is "smell"'),
    ],
)
@pytest.mark.parametrize("written", [list, packed])
def test_a_wrong_item_among_others_is_named_by_its_place(
    shared: Replica,
    written: Callable[[Sequence[float]], object],
    wrong: dict[str, object],
    message: str,
) -> None:
    image = {"modality": "image", "feature": written([1.0] * 5)}
    text = {"modality": "text", "feature": written([1.0] * 4)}
    items = [image, text, wrong, image]
    response = shared.embed(modality=None, input=items)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("width", [None, 6, 4, 1])
def test_fewer_dimensions_are_the_first_numbers_at_unit_length(
    shared: Replica, width: int | None
) -> None:
    whole, prefix = (rows_of(shared.embed(dimensions=each)) for each in (None, width))
    expected = whole[:, :width]
    size = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(prefix, expected / size, atol=1e-6)


def test_heads_that_order_no_numbers_have_their_width_only(replica: Replica) -> None:
    replica.publish(version=1, spec=SPEC.model_copy(update={"policy": "preserve"}))
    replica.poll()
    response = replica.embed(dimensions=4)
    assert response.status_code == 400
    assert "only heads of the policy improve" in response.json()["error"]["message"]
