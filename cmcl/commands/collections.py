"""`cmcl collection` and `cmcl search`: items at the query endpoint, found by whatever version is live."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.client import Client
from cmcl.terminal.console import Columns, fields, say, show, show_all, stdout, table
from cmcl.terminal.items import parse_filter, read_items, read_query
from cmcl.terminal.options import DEFAULT_QUERY_URL, AsJson, EmbeddingsUrl, OfModel, Yes
from cmcl.types import Collection, Found, Hit

app = typer.Typer(no_args_is_help=True, help="Collections: search that follows the model.")


def _rows(collection: Collection) -> str | None:
    rows = collection.searched.rows if collection.searched else {}
    return ", ".join(f"{modality} {count}" for modality, count in rows.items()) or None


_COLUMNS: Columns[Collection] = {
    "collection": lambda each: each.id,
    "model": lambda each: each.model,
    "revision": lambda each: each.revision,
    "version": lambda each: each.searched.version if each.searched else None,
    "rows": _rows,
    "stored": lambda each: f"{each.stored_bytes / 1e6:.1f} MB",
}
_HITS: Columns[Hit] = {
    "score": lambda hit: hit.score,
    "id": lambda hit: hit.id,
    "modality": lambda hit: hit.modality,
    "payload": lambda hit: json.dumps(hit.payload, ensure_ascii=False) if hit.payload else None,
}


@app.command("create")
def create_collection(
    name: str,
    model: OfModel,
    feature_type: Annotated[str, typer.Option(help="float32, or float16: half of the store")] = (
        "float32"
    ),
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Make a collection."""
    with Client(embeddings_url=embeddings_url) as client:
        show(client.create_collection(name, model, feature_type), as_json, _view)


@app.command("list")
def list_collections(
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, as_json: AsJson = False
) -> None:
    """All collections."""
    with Client(embeddings_url=embeddings_url) as client:
        show_all(client.collections(), as_json, _COLUMNS)


@app.command("show")
def show_collection(
    name: str, embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, as_json: AsJson = False
) -> None:
    """One collection: what is stored, and what the replica that answers searches."""
    with Client(embeddings_url=embeddings_url) as client:
        show(client.collection(name), as_json, _view)


@app.command("delete")
def delete_collection(
    name: str, embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, yes: Yes = False
) -> None:
    """Remove a collection with all its items."""
    if not yes:
        typer.confirm(f"Delete collection {name} with all its items?", abort=True)
    with Client(embeddings_url=embeddings_url) as client:
        client.delete_collection(name)


@app.command("add")
def add_items(
    name: str,
    file: Annotated[
        Path, typer.Argument(help="JSON lines: id, modality, feature or text, payload")
    ],
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Add items; those that are there by the same id are replaced."""
    with Client(embeddings_url=embeddings_url) as client:
        written = client.add_items(name, read_items(file))
    say(f"{name} is at revision {written.revision}", written, as_json)


@app.command("remove")
def remove_items(
    name: str,
    ids: list[str],
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Remove items by id."""
    with Client(embeddings_url=embeddings_url) as client:
        written = client.remove_items(name, ids)
    say(f"{name} is at revision {written.revision}", written, as_json)


@app.command("export")
def export_collection(
    name: str,
    out: Annotated[Path, typer.Option(help="file to write")],
    form: Annotated[
        str, typer.Option("--format", help="qdrant, pgvector, or pgvector-ddl for its table")
    ] = "qdrant",
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
) -> None:
    """Items with the vectors of the live version, for another store."""
    with Client(embeddings_url=embeddings_url) as client:
        out.write_bytes(client.export_collection(name, form))


def search(  # noqa: PLR0913 - what can be said about a search
    name: str,
    modality: Annotated[str, typer.Argument(help="of what is searched for")],
    feature: Annotated[Path | None, typer.Argument(help="JSON file with one feature")] = None,
    *,
    text: Annotated[str | None, typer.Option(help="where an encoder of texts stands")] = None,
    data: Annotated[Path | None, typer.Option(help="file for an encoder of files")] = None,
    among: Annotated[
        list[str] | None, typer.Option(help="modality of what is found; repeatable")
    ] = None,
    where: Annotated[str | None, typer.Option(help="filter over payloads, as JSON")] = None,
    top_k: int = 10,
    exact: Annotated[bool, typer.Option("--exact", help="compare with every row")] = False,
    min_revision: int = 0,
    min_version: int = 0,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """The items of a collection that are nearest to one of any modality."""
    query, wanted = read_query(modality, feature, text, data), parse_filter(where)
    with Client(embeddings_url=embeddings_url) as client:
        found = client.search(
            name,
            query,
            top_k,
            modalities=among or None,
            filter=wanted,
            exact=exact,
            min_revision=min_revision,
            min_version=min_version,
        )
    show(found, as_json, _found)


def _view(collection: Collection) -> RenderableType:
    values = {title: value(collection) for title, value in _COLUMNS.items()}
    problem = collection.searched.problem if collection.searched else None
    return fields({**values, "features": collection.feature_type, "problem": problem})


def _found(found: Found) -> RenderableType:
    how = "exact" if found.exact else "approximate"
    answered = f"by {found.model}, revision {found.revision}, {how}"
    return Group(table(found.data, _HITS, stdout()), Text(answered, style="dim"))
