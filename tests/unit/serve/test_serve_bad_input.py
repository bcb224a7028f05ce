"""Every invalid request gets a specific error in OpenAI's format."""

import json

import httpx
import pytest

from tests.unit.serve.conftest import Replica

ROW = [1.0, 2.0, 3.0, 4.0, 5.0]


def problem(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, str] = body["error"]
    return error


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "input has 0 rows; permitted are 1 to 50"),
        ([ROW] * 51, "input has 51 rows; permitted are 1 to 50"),
        ([1, 2, 3], "input row 0 has 3 numbers; a feature of modality 'image' has 5"),
        ([ROW, ROW[:4]], "input row 1 has 4 numbers; a feature of modality 'image' has 5"),
        ([ROW, []], "input row 1 has 0 numbers"),
        ([[]], "input row 0 has 0 numbers"),
        ([0, 0, 0, 0, 0], "input row 0 is all zeros"),
        ([ROW, [0.0] * 5], "input row 1 is all zeros"),
        ([1e300, 0, 0, 0, 0], "input row 0 is of length 1e+300; permitted are lengths"),
        ([1e19, 0, 0, 0, 0], "input row 0 is of length 1e+19"),
        ([1e-30, 0, 0, 0, 0], "input row 0 is of length 1e-30"),
        ([1e-200, 0, 0, 0, 0], "input row 0 is of length 1e-200"),
        ("words", "modality 'image' of model 'scenes' takes features: it is bound to no encoder"),
        ([{"feature": ROW}], "the field 'input[0].modality' is missing"),
        (
            [{"modality": "image"}],
            "input[0] has none; permitted is exactly one of feature, text, data, numbers",
        ),
        ({"a": 1}, "input is an object with 'a'; permitted is a string or a list"),
        (7, "input is 7; permitted is a string or a list"),
        ([1, 2, "3", 4, 5], 'input[2] is "3"; permitted is a number, as input[0] is'),
        (
            [1, 2, True, 4, 5],
            "input[2] is true; permitted is a number or a string or an object or a list",
        ),
        ([ROW, [1, 2, None, 4, 5]], "input[1][2] is null; permitted is a number"),
        ([ROW, 3], "input[1] is 3.0; permitted is a list, as input[0] is"),
        ([3, ROW], "input[1] is a list of 5; permitted is a number, as input[0] is"),
        ([[ROW]], "input[0][0] is a list of 5; permitted is a number"),
    ],
)
def test_a_wrong_input_is_named_with_its_row(shared: Replica, value: object, message: str) -> None:
    error = problem(shared.embed(input=value), 400)
    assert message in error["message"]
    assert error["param"] == "input"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        *((token, "NaN, Infinity and comments") for token in ("NaN", "Infinity", "-Infinity")),
        *((token, "[2] is") for token in ("1e400", "1" + "0" * 400)),
    ],
)
@pytest.mark.parametrize("shape", ["[1, 2, {}, 4, 5]", "[[1, 2, {}, 4, 5]]"])
def test_numbers_that_are_not_finite_are_refused(
    shared: Replica, token: str, message: str, shape: str
) -> None:
    body = '{"model": "scenes", "modality": "image", "input": ' + shape.format(token) + "}"
    error = problem(shared.send(body.encode()), 400)
    assert message in error["message"]


@pytest.mark.parametrize("tokens", [[9906, 1917], [[9906, 1917]], [[9906, 1917], [3]]])
def test_token_ids_in_place_of_texts_are_recognized(shared: Replica, tokens: object) -> None:
    error = problem(shared.embed(modality=None, input=tokens), 400)
    assert error["code"] == "token_ids"
    assert "check_embedding_ctx_length=False" in error["message"]
    features = problem(shared.embed(modality=None, input=[0.5, -1.0]), 400)
    assert "token" not in features["message"]


@pytest.mark.parametrize(
    "tokens", [[9906, 1917, 0, 3], [[9906, 1917, 0, 3], [1, 2.0, 3, 4]], [[1, 2, 3, 10**30]]]
)
def test_token_ids_as_wide_as_a_feature_are_never_embedded(
    with_encoder: Replica, tokens: object
) -> None:
    """`text` is four numbers wide and bound to an encoder."""
    error = problem(with_encoder.embed(modality="text", input=tokens), 400)
    assert error["code"] == "token_ids"
    assert "check_embedding_ctx_length=False" in error["message"]


def test_features_of_whole_numbers_are_embedded_where_they_cannot_be_token_ids(
    with_encoder: Replica,
) -> None:
    assert with_encoder.embed(modality="image", input=[1, 2, 3, 4, 5]).status_code == 200
    assert (
        with_encoder.embed(modality="text", input=[[1, 2, 3, 4], [1, 2, 3, 0.5]]).status_code == 200
    )
    assert with_encoder.embed(modality="text", input=[1, 2, 3, -4]).status_code == 200
    item = {"modality": "text", "feature": [1, 2, 3, 4]}
    assert with_encoder.embed(modality=None, input=[item]).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b'{"model": "\xff"}', "the body is not JSON"),
        (b"[" * 5000, "the body must be a JSON object"),
        (b"[1]", "the body must be a JSON object with the fields model, modality, "),
        (b"null", "the body must be a JSON object"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(
    shared: Replica, body: bytes, message: str
) -> None:
    assert message in problem(shared.send(body), 400)["message"]


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"model": None}, "model", "the field 'model' is missing"),
        ({"modality": None}, "modality", "the field 'modality' is missing"),
        ({"model": 3}, "model", "model is 3; permitted is a string"),
        ({"dimensions": 7}, "dimensions", "dimensions is 7; scenes@1 has 6"),
        ({"truncate": 3}, "truncate", 'there is no field "truncate"'),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"normalize": "yes"}, "normalize", 'normalize is "yes"; permitted is a boolean'),
        ({"normalize": 1}, "normalize", "normalize is 1; permitted is a boolean"),
        ({"modality": "audio"}, "modality", '"audio"; this model has image, text'),
        ({"model": "Scenes"}, "model", 'model is "Scenes"; permitted is a name of lower-case'),
        ({"model": "../scenes"}, "model", "permitted is a name"),
        ({"model": "scenes\n"}, "model", "permitted is a name"),
        ({"model": "scenes@"}, "model", "permitted is a name"),
        ({"model": "scenes@0"}, "model", "permitted is a name"),
        ({"model": "scenes@-1"}, "model", "permitted is a name"),
        ({"model": "scenes@1.0"}, "model", "permitted is a name"),
        ({"model": "scenes@1@2"}, "model", "permitted is a name"),
        ({"model": "x" * 10_000}, "model", "permitted is a name"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_permitted(
    shared: Replica, changes: dict[str, object], param: str, message: str
) -> None:
    error = problem(shared.embed(None, **changes), 400)
    assert message in error["message"]
    assert error["param"] == param
    assert len(error["message"]) < 400


def test_an_unknown_model_is_404(shared: Replica) -> None:
    error = problem(shared.embed(model="nothing"), 404)
    assert error["message"] == "there is no model 'nothing' with a version"
    assert error["code"] == "model_not_found"


def test_a_version_never_published_is_404(shared: Replica) -> None:
    error = problem(shared.embed(model="scenes@7"), 404)
    assert error["message"] == "model 'scenes' has no published version 7"
    assert error["code"] == "version_not_found"


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "9" * 5000])
def test_a_wrong_min_version_is_refused(shared: Replica, value: str) -> None:
    error = problem(shared.embed({"x-min-model-version": value}), 400)
    assert error["param"] == "x-min-model-version"


def test_an_exact_version_below_the_minimum_is_refused(shared: Replica) -> None:
    error = problem(shared.embed({"x-min-model-version": "2"}, model="scenes@1"), 400)
    assert "exactly version 1" in error["message"]


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "600001", "9" * 5000, "²"])
def test_a_wrong_timeout_is_refused(shared: Replica, value: str) -> None:
    error = problem(shared.embed({b"x-request-timeout-ms": value.encode("latin-1")}), 400)
    assert error["param"] == "x-request-timeout-ms"
    assert error["message"].endswith("permitted are 1 to 600000")


@pytest.mark.parametrize("field", ["dimensions", "input", "modality", "user"])
@pytest.mark.parametrize("digits", [4300, 5000])
def test_a_number_of_thousands_of_digits_in_a_body_is_refused(
    shared: Replica, field: str, digits: int
) -> None:
    body = json.dumps({"model": "scenes", "modality": "image", "input": [1, 2, 3, 4, 5]})
    number = "9" * digits
    body = body[:-1] + f', "{field}": {number}}}'
    assert len(problem(shared.send(body.encode()), 400)["message"]) < 400


def test_a_length_of_thousands_of_digits_is_413(shared: Replica) -> None:
    problem(shared.embed({"content-length": "9" * 5000}), 413)
    assert shared.embed({"content-length": "0" * 5000 + "68"}).status_code == 200


def test_a_body_declared_too_large_is_413(shared: Replica) -> None:
    error = problem(shared.send(b" " * 20_001), 413)
    assert error["message"] == "the body has 20001 bytes; permitted are 20000 bytes"


def test_unknown_paths_and_methods_have_the_same_shape(shared: Replica) -> None:
    assert problem(shared.get("/v1/nothing"), 404)["code"] == "path_not_found"
    response = shared.get("/v1/embeddings")
    assert problem(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/datasets"), ("POST", "/v1/models"), ("GET", "/v1/jobs")]
)
def test_routes_of_the_control_plane_are_named_in_the_404(
    shared: Replica, method: str, path: str
) -> None:
    response = shared.run(lambda client: client.request(method, path))
    message = problem(response, 405 if path == "/v1/models" else 404)["message"]
    assert "this is the embeddings endpoint" in message
    assert "CMCL_URL" in message


def test_a_million_wrong_numbers_make_one_error(shared: Replica) -> None:
    body = json.dumps({"model": "scenes", "modality": "image", "input": [["x"] * 99] * 40})
    assert 'input[0][0] is "x"' in problem(shared.send(body.encode()), 400)["message"]
