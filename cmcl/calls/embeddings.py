"""The query endpoint."""

import base64
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx

from cmcl.errors import CmclError, InvalidArgument, Json, json_object
from cmcl.flow.api import Api, json_bytes, listed, not_of_cmcl, read, segment, validated
from cmcl.flow.effects import Exchange, Flow, Side
from cmcl.types import Embeddings, Item, Migrated, Query, ServedModel, Similarity

Vectors = Sequence[Sequence[float]]
T = TypeVar("T")

_LONGEST_SHOWN = 100
_PERMITTED = (
    "write Query(modality, feature), Query(modality, text=...) or Query(modality, data=...), and "
    "Item(id, modality, ...) for an item"
)


def embed(
    api: Api, model: str, modality: str, inputs: Vectors | Sequence[str] | str
) -> Flow[Embeddings]:
    """Embed features or texts with the live version of `model`, or with that of `name@version`.

    `inputs`: features (rows × the modality's width), or texts where the endpoint has an encoder for
    the modality (docs/encoders.md). The answer has a vector for each.
    """
    body = {"model": model, "modality": modality, **_written(inputs)}
    response = yield from _ask(api, "/v1/embeddings", body)
    return _understood(response, lambda answer: Embeddings(_vectors(answer), _version(answer)))


def migrate(
    api: Api,
    model: str,
    modality: str,
    vectors: Vectors,
    from_version: int,
    most_error: float = 0.5,
) -> Flow[Migrated]:
    """Turn vectors that one version stored into those of the live version, or of `name@version`.

    Refused (422) where that would be off by more than `most_error`, from 0 to 1.
    """
    name, _, to_version = model.partition("@")
    body = {
        "model": name,
        "modality": modality,
        "from_version": from_version,
        "to_version": int(to_version) if to_version.isdecimal() else to_version or None,
        "most_error": most_error,
        **_written(vectors),
    }
    response = yield from _ask(api, "/v1/migrate", body)
    return _understood(response, _migrated)


def similarity(
    api: Api,
    model: str,
    queries: Sequence[Query],
    candidates: Sequence[Query],
    top_k: int | None = None,
) -> Flow[Similarity]:
    """Score every query against every candidate; with `top_k`, each query's best candidates alone.

    Queries and candidates may be of any modalities of the model. One version embeds all of them: the
    live one of `model`, or that of `name@version`.
    """
    body = {
        "model": model,
        "queries": [content_of(each) for each in queries],
        "candidates": [content_of(each) for each in candidates],
        "top_k": top_k,
    }
    response = yield from _ask(api, "/v1/similarity", body)
    return read(Similarity, response, Side.EMBEDDINGS)


def served_models(api: Api) -> Flow[list[ServedModel]]:
    """The models that the endpoint answers for: versions, trials, whether stored vectors still fit."""
    response = yield from api.send(Exchange("GET", "/v1/models", Side.EMBEDDINGS))
    models = listed(response, "data", Side.EMBEDDINGS)["data"]
    return [validated(ServedModel, each, response) for each in models]


def served_model(api: Api, model: str) -> Flow[ServedModel]:
    """One of them, by its name or as name@version."""
    path = f"/v1/models/{segment(model)}"
    response = yield from api.send(Exchange("GET", path, Side.EMBEDDINGS))
    return read(ServedModel, response, Side.EMBEDDINGS)


def content_of(item: Item | Query) -> dict[str, Any]:
    """Modality and content as the endpoint reads them: base64 costs a quarter of a list of numbers.

    Raises InvalidArgument.
    """
    if not isinstance(item, Item | Query):
        raise InvalidArgument(f"a query or item is {_shown(item)}; {_PERMITTED}")
    if sum(each is not None for each in (item.feature, item.text, item.data)) != 1:
        raise InvalidArgument(f"{_shown(item)} has no content, or more than one; {_PERMITTED}")
    content: dict[str, Any] = {"modality": item.modality}
    if item.feature is not None:
        content["feature"] = base64.b64encode(_packed(item.feature)).decode()
    if item.text is not None:
        content["text"] = item.text
    if item.data is not None:
        content["data"] = base64.b64encode(item.data).decode()
    return content


def _ask(api: Api, path: str, body: dict[str, Any]) -> Flow[httpx.Response]:
    given = {name: value for name, value in body.items() if value is not None}
    headers = {"content-type": "application/json"}
    request = Exchange("POST", path, Side.EMBEDDINGS, headers=headers, content=json_bytes(given))
    return (yield from api.send(request))


def _written(inputs: Vectors | Sequence[str] | str) -> dict[str, object]:
    texts = [inputs] if isinstance(inputs, str) else inputs
    try:
        rows = [row if isinstance(row, str) else list(row) for row in texts]
    except TypeError as error:
        raise InvalidArgument(
            f"input is {_shown(inputs)}; it may be a list of features (each a list of numbers; "
            "write [feature] for one), a text, or a list of texts"
        ) from error
    return {"input": rows, "encoding_format": "base64"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _packed(feature: Sequence[float]) -> bytes:
    try:
        return struct.pack(f"<{len(feature)}f", *feature)
    except (struct.error, OverflowError, TypeError) as error:
        raise InvalidArgument(
            f"a feature is not a list of numbers that float32 holds: {error}"
        ) from error


def _understood(response: httpx.Response, read_from: Callable[[Json], T]) -> T:
    """Raises CmclError for an answer of another form."""
    answer = json_object(response)
    if answer is None:
        raise not_of_cmcl(Side.EMBEDDINGS, response)
    try:
        return read_from(answer)
    except (KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        message = f"the endpoint answered in a form that this client does not know: {error!r}"
        raise CmclError(message, response.status_code) from error


def _migrated(answer: Json) -> Migrated:
    told = answer["migration"]
    names = (
        "from_version",
        "predicted_error",
        "error_on_rows",
        "rank",
        "condition",
        "exact",
    )
    return Migrated(_vectors(answer), _version(answer), **{name: told[name] for name in names})


def _vectors(answer: Json) -> list[list[float]]:
    return [_floats(item["embedding"]) for item in answer["data"]]


def _version(answer: Json) -> int:
    return int(answer["model"].rpartition("@")[2])


def _floats(encoded: str) -> list[float]:
    data = base64.b64decode(encoded, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
