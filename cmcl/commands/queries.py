"""`cmcl embed`: queries to the embeddings endpoint."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cmcl.client import Client
from cmcl.terminal.exits import Refused
from cmcl.terminal.options import DEFAULT_QUERY_URL, AsJson, EmbeddingsUrl


def embed(
    model: Annotated[str, typer.Argument(help="NAME for the live version, or NAME@VERSION")],
    modality: str,
    features: Annotated[Path, typer.Argument(help="JSON file with one feature or a list of them")],
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Embed features; prints one JSON document, with or without --json."""
    rows = _features(features)
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.embed(model, modality, rows)
    print(json.dumps({"version": answer.version, "embeddings": answer.vectors}))


def _features(path: Path) -> list[list[float]]:
    """One feature, or a list of features, as a list; what is in them is for the endpoint to judge."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise Refused(f"{path}: write one feature (a list of numbers) or a list of features")
    return rows
