"""`cmcl embed`, `similarity` and `migrate`: queries to the embeddings endpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cmcl.cli.items import read_features, read_queries
from cmcl.cli.options import DEFAULT_QUERY_URL, AsJson, EmbeddingsUrl, QueriedModel
from cmcl.client import Client


def embed(
    model: QueriedModel,
    modality: Annotated[
        str | None,
        typer.Argument(metavar="MODALITY", help="modality of the input; default text, for --text"),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Argument(metavar="FEATURES", help="JSON file with one feature or a list of them"),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="text to embed; needs an encoder at the endpoint; repeatable"),
    ] = None,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Embed features or texts. Prints one JSON document, with or without --json."""
    if (features is None) == (not text):
        raise typer.BadParameter("give either a FEATURES file or --text TEXT")
    if features is not None and modality is not None:
        inputs: list[list[float]] | list[str] = read_features(features)
    else:
        inputs = text or []
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.embed(model, modality or "text", inputs)
    print(json.dumps({"version": answer.version, "embeddings": answer.vectors}))


def similarity(
    model: QueriedModel,
    queries: Annotated[
        Path, typer.Argument(metavar="QUERIES", help="JSON file with one item or a list of them")
    ],
    candidates: Annotated[
        Path, typer.Argument(metavar="CANDIDATES", help="JSON file with items to score")
    ],
    top_k: Annotated[
        int | None, typer.Option(help="number of best candidates per query; default all")
    ] = None,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Score queries against candidates. An item is {"modality": ..., "feature": [...]}, or has "text"."""
    query_items, candidate_items = read_queries(queries), read_queries(candidates)
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.similarity(model, query_items, candidate_items, top_k)
    print(answer.model_dump_json(exclude_none=True))


def migrate(
    model: QueriedModel,
    modality: Annotated[str, typer.Argument(metavar="MODALITY", help="modality of the vectors")],
    vectors: Annotated[
        Path, typer.Argument(metavar="VECTORS", help="JSON file with one vector or a list of them")
    ],
    from_version: Annotated[int, typer.Option("--from", help="version that computed the vectors")],
    most_error: Annotated[
        float, typer.Option(help="largest relative error; the command fails above it", min=0, max=1)
    ] = 0.5,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Map stored vectors of one version to another. Prints one JSON document."""
    rows = read_features(vectors)
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.migrate(model, modality, rows, from_version, most_error)
    print(json.dumps(asdict(answer)))
