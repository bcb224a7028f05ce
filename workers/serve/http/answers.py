"""Answers in OpenAI's shape, as JSON bytes."""

import base64
from collections.abc import Mapping
from typing import Literal

from pydantic_core import to_json

from workers.serve.versions.live import LiveModel
from workers.serve.versions.loading import Float32Array, ServedVersion


def embeddings_body(
    version: ServedVersion,
    embeddings_BE: Float32Array,
    encoding: Literal["float", "base64"],
) -> bytes:
    """The answer to `POST /v1/embeddings`; to_json costs an eighth of json.dumps here."""
    encoded: list[str] | list[list[float]] = (
        _as_base64(embeddings_BE) if encoding == "base64" else embeddings_BE.tolist()
    )
    data = [
        {"object": "embedding", "index": index, "embedding": each}
        for index, each in enumerate(encoded)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return to_json({"object": "list", "data": data, "model": version.label, "usage": usage})


def models_body(live: Mapping[str, LiveModel]) -> bytes:
    """The answer to `GET /v1/models`."""
    data = [_model(each) for _, each in sorted(live.items())]
    return to_json({"object": "list", "data": data})


def _as_base64(embeddings_BE: Float32Array) -> list[str]:
    little_endian_BE = embeddings_BE.astype("<f4")
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little_endian_BE]


def _model(live: LiveModel) -> dict[str, object]:
    version = live.version
    return {
        "id": version.model,
        "object": "model",
        "created": int(version.created_at.timestamp()),
        "owned_by": "cmcl",
        "version": version.number,
        "generation": live.generation,
        "width": version.spec.width,
        "modalities": version.spec.modalities,
    }
