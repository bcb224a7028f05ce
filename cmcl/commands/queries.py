"""`cmcl embed`, `similarity` and `migrate`: queries to the embeddings endpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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


def similarity(
    model: Annotated[str, typer.Argument(help="NAME for the live version, or NAME@VERSION")],
    queries: Annotated[Path, typer.Argument(help="JSON file with one item or a list of them")],
    candidates: Annotated[Path, typer.Argument(help="the same")],
    top_k: Annotated[int | None, typer.Option(help="the best of each query alone")] = None,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Score items against each other; an item is {"modality": ..., "feature": [...]}."""
    sides = _items(queries), _items(candidates)
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.similarity(model, *sides, top_k=top_k)
    print(answer.model_dump_json(exclude_none=True))


def migrate(
    model: Annotated[str, typer.Argument(help="NAME for the live version, or NAME@VERSION")],
    modality: str,
    vectors: Annotated[Path, typer.Argument(help="JSON file with one vector or a list of them")],
    from_version: Annotated[int, typer.Option("--from", help="the version that stored them")],
    most_error: Annotated[
        float, typer.Option(help="relative error above which nothing is migrated", min=0, max=1)
    ] = 0.5,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    _as_json: AsJson = True,
) -> None:
    """Turn stored vectors of one version into those of another; prints one JSON document."""
    rows = _features(vectors)
    with Client(embeddings_url=embeddings_url) as client:
        answer = client.migrate(model, modality, rows, from_version, most_error)
    print(json.dumps(asdict(answer)))


def _items(path: Path) -> list[dict[str, object]]:
    """One item, or a list of items, as a list; what is in them is for the endpoint to judge."""
    items = _read_json(path)
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Refused(f"{path}: write one item (an object with modality and feature) or a list")
    return items


def _features(path: Path) -> list[list[float]]:
    """One feature, or a list of features, as a list; what is in them is for the endpoint to judge."""
    rows = _read_json(path)
    if isinstance(rows, list) and not any(isinstance(row, list) for row in rows):
        rows = [rows]
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise Refused(f"{path}: write one feature (a list of numbers) or a list of features")
    return rows


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read as JSON: {error}") from error
