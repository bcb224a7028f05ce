"""The query endpoint."""

import base64
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from cmcl.errors import CmclError, Json, json_object, refusal
from cmcl.flow.api import Api, json_bytes, read, segment, validated
from cmcl.flow.effects import Exchange, Flow, Side
from cmcl.types import Embeddings, Migrated, ServedModel, Similarity

Vectors = Sequence[Sequence[float]]
T = TypeVar("T")


def embed(api: Api, model: str, modality: str, features: Vectors) -> Flow[Embeddings]:
    """Embed features with the live version, or with exactly one: `model` is `name@version` then."""
    body = {"model": model, "modality": modality, **_written(features)}
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
    queries: Sequence[Mapping[str, object]],
    candidates: Sequence[Mapping[str, object]],
    top_k: int | None = None,
) -> Flow[Similarity]:
    """Score every query against every candidate, or find each query's best.

    An item is a mapping with `modality` and one of `feature`, `text`, `data`; one version embeds all.
    """
    body = {
        "model": model,
        "queries": [dict(item) for item in queries],
        "candidates": [dict(item) for item in candidates],
        "top_k": top_k,
    }
    response = yield from _ask(api, "/v1/similarity", body)
    return read(Similarity, response)


def served_models(api: Api) -> Flow[list[ServedModel]]:
    """The models that the endpoint answers for: versions, trials, whether stored vectors still fit."""
    response = yield from api.send(Exchange("GET", "/v1/models", Side.EMBEDDINGS))
    return _understood(
        response, lambda answer: [validated(ServedModel, one, response) for one in answer["data"]]
    )


def served_model(api: Api, model: str) -> Flow[ServedModel]:
    """One of them, by its name or as name@version."""
    path = f"/v1/models/{segment(model)}"
    response = yield from api.send(Exchange("GET", path, Side.EMBEDDINGS))
    return read(ServedModel, response)


def _ask(api: Api, path: str, body: dict[str, Any]) -> Flow[httpx.Response]:
    given = {name: value for name, value in body.items() if value is not None}
    headers = {"content-type": "application/json"}
    request = Exchange("POST", path, Side.EMBEDDINGS, headers=headers, content=json_bytes(given))
    return (yield from api.send(request))


def _written(rows: Vectors) -> dict[str, object]:
    return {"input": [list(row) for row in rows], "encoding_format": "base64"}


def _understood(response: httpx.Response, read_from: Callable[[Json], T]) -> T:
    """Raises CmclError for an answer of another form."""
    answer = json_object(response)
    if answer is None:
        raise refusal(response)
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
