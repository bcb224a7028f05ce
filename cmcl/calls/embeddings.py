"""The query endpoint."""

import base64
import struct
from collections.abc import Sequence

from cmcl.errors import CmclError, json_object, refusal
from cmcl.flow.api import Api, json_bytes
from cmcl.flow.effects import Exchange, Flow, Side
from cmcl.types import Embeddings


def embed(
    api: Api, model: str, modality: str, features: Sequence[Sequence[float]]
) -> Flow[Embeddings]:
    """Embed features with the live version, or with exactly one: `model` is `name@version` then."""
    body = {
        "model": model,
        "modality": modality,
        "input": [list(row) for row in features],
        "encoding_format": "base64",
    }
    headers = {"content-type": "application/json"}
    request = Exchange(
        "POST", "/v1/embeddings", Side.EMBEDDINGS, headers=headers, content=json_bytes(body)
    )
    response = yield from api.send(request)
    answer = json_object(response)
    if answer is None:
        raise refusal(response)
    try:
        vectors = [_floats(item["embedding"]) for item in answer["data"]]
        return Embeddings(vectors, int(answer["model"].rpartition("@")[2]))
    except (KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        message = f"the endpoint answered in a form that this client does not know: {error!r}"
        raise CmclError(message, response.status_code) from error


def _floats(encoded: str) -> list[float]:
    data = base64.b64decode(encoded, validate=True)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
