"""The same matrix products in a minimal FastAPI application: one process.

`python -m benchmarks.peers.bare --port N`. A pydantic model, the same heads and the same three
formats; one version, no swaps, no limits, no metrics, no validation beyond pydantic's.

Shapes: B rows, F width of the raw feature, E width of the embeddings.
"""

import argparse
import base64
from typing import Annotated, Literal

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic_core import to_json

from benchmarks.endpoint.stored import heads_of
from workers.model.heads import ModalityHeads

# The endpoint's header, so that one check works for both.
_VERSION = {"x-model-version": "1"}


class Item(BaseModel):
    """A row as base64 of float32."""

    modality: str
    feature: str


class Question(BaseModel):
    """OpenAI's request format with features."""

    model: str
    modality: str | None = None
    input: list[list[float]] | list[Item]
    encoding_format: Literal["float", "base64"] = "float"


def rows_of(question: Question) -> tuple[str, np.ndarray]:
    """Return modality and rows (B × F). All rows of a request have the same modality here."""
    items = [each for each in question.input if isinstance(each, Item)]
    if items:
        raw = b"".join(base64.b64decode(item.feature) for item in items)
        return items[0].modality, np.frombuffer(raw, np.float32).reshape(len(items), -1)
    return question.modality or "", np.array(question.input, np.float32)


def create_app(heads: ModalityHeads) -> FastAPI:
    """Create the application: one route, two content types."""
    app = FastAPI()

    @torch.inference_mode()
    def embed(modality: str, rows_BF: np.ndarray) -> np.ndarray:
        embeddings_BE: np.ndarray = heads.embed(modality, torch.from_numpy(rows_BF)).numpy()
        return embeddings_BE

    @app.post("/v1/embeddings")
    async def answer(question: Question) -> Response:
        embeddings_BE = embed(*rows_of(question))
        if question.encoding_format == "base64":
            encoded: list[object] = [base64.b64encode(row).decode() for row in embeddings_BE]
        else:
            encoded = embeddings_BE.tolist()
        data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(encoded)]
        body = to_json({"object": "list", "data": data, "model": question.model})
        return Response(body, media_type="application/json", headers=_VERSION)

    @app.post("/v1/raw")
    async def raw(
        request: Request, modality: Annotated[str, Query()], width: Annotated[int, Query()]
    ) -> Response:
        rows_BF = np.frombuffer(await request.body(), np.float32).reshape(-1, width)
        embeddings_BE = embed(modality, rows_BF.copy())
        media_type = "application/octet-stream"
        return Response(embeddings_BE.tobytes(), media_type=media_type, headers=_VERSION)

    return app


def main() -> None:
    """Serve until terminated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--width", type=int, default=1024)
    options = parser.parse_args()
    torch.set_num_threads(1)
    app = create_app(heads_of(1, options.width))
    uvicorn.run(app, port=options.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
