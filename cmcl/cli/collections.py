"""`cmcl collection` and `cmcl search`: collections of items, searched with the live version."""

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cmcl.cli.console import Columns, fields, say, show, show_all, stderr, table
from cmcl.cli.errors import CommandError
from cmcl.cli.options import DEFAULT_QUERY_URL, AsJson, EmbeddingsUrl, OfModel, Yes
from cmcl.cli.queries import RawItems, parse_filter, read_items, read_query
from cmcl.client import Client, Collection, SearchHit, SearchResults, SearchStatus
from cmcl.contract.api.endpoint import FloatType, VectorType

app = typer.Typer(
    no_args_is_help=True,
    help="Collections of items, searched with the live version of their model.",
)


# Of one request; one with files waits until they are encoded.
_LINES_AT_ONCE, _FILES_AT_ONCE = 1000, 32

CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="name of the collection")]


def _counts(by_modality: Mapping[str, int] | None) -> str | None:
    counts = (f"{modality} {count}" for modality, count in (by_modality or {}).items())
    return ", ".join(counts) or None


def _progress(status: SearchStatus | None) -> str | None:
    """How much of the next version's vectors is computed."""
    if status is None or status.progress is None:
        return None
    left = "" if status.seconds_left is None else f", {status.seconds_left:.0f} s left"
    return f"{status.progress:.0%}{left}"


_COLUMNS: Columns[Collection] = {
    "collection": lambda each: each.id,
    "model": lambda each: each.model,
    "revision": lambda each: each.revision,
    "version": lambda each: each.searched.version if each.searched else None,
    "rows": lambda each: _counts(each.searched.rows) if each.searched else None,
    "next": lambda each: _progress(each.searched),
}
_HITS: Columns[SearchHit] = {
    "score": lambda hit: hit.score,
    "id": lambda hit: hit.id,
    "modality": lambda hit: hit.modality,
    "payload": lambda hit: json.dumps(hit.payload, ensure_ascii=False) if hit.payload else None,
}


@app.command("create")
def create_collection(  # noqa: PLR0913 - the properties of a collection
    name: CollectionName,
    model: OfModel,
    *,
    feature_type: Annotated[
        FloatType, typer.Option(help="how features are stored; float16 takes half the space")
    ] = "float32",
    vector_type: Annotated[
        VectorType,
        typer.Option(help="how vectors are stored; float16 takes half the space, bit a 32nd"),
    ] = "float32",
    dimensions: Annotated[
        int | None,
        typer.Option(help="how many numbers of each vector to keep, the first ones", min=1),
    ] = None,
    text_field: Annotated[
        list[str] | None,
        typer.Option(help="field of payloads that is searched by --words; repeatable"),
    ] = None,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Create a collection, searched with the live version of the model."""
    with Client(embeddings_url=embeddings_url) as client:
        made = client.create_collection(
            name,
            model,
            feature_type,
            vector_type=vector_type,
            dimensions=dimensions,
            text_fields=text_field or (),
        )
    show(made, as_json, _view)


@app.command("list")
def list_collections(
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, as_json: AsJson = False
) -> None:
    """List collections."""
    with Client(embeddings_url=embeddings_url) as client:
        hint = "no collections yet; create one: cmcl collection create NAME --model MODEL"
        show_all(client.collections(), as_json, _COLUMNS, hint)


@app.command("show")
def show_collection(
    name: CollectionName, embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, as_json: AsJson = False
) -> None:
    """Show a collection: stored state, and search state of the responding replica."""
    with Client(embeddings_url=embeddings_url) as client:
        show(client.collection(name), as_json, _view)


@app.command("delete")
def delete_collection(
    name: CollectionName, embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL, yes: Yes = False
) -> None:
    """Delete a collection with all its items."""
    if not yes:
        typer.confirm(f"Delete collection {name} with all its items?", abort=True)
    with Client(embeddings_url=embeddings_url) as client:
        client.delete_collection(name)


@app.command("add")
def add_items(  # noqa: PLR0913 - how files become items
    name: CollectionName,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines: id, modality, feature or text, payload; with --modality a picture, sound or "
            "video, or a folder of them",
        ),
    ],
    *,
    modality: Annotated[
        str | None, typer.Option(help="modality of the raw files; it must be bound to an encoder")
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="make an item of each window of a recording")
    ] = False,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="keep a small picture of each picture or video")
    ] = False,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Add items from a file or a folder. Items with the same ids are replaced.

    A folder's metadata.jsonl, metadata.csv, manifest.jsonl or manifest.csv names the files and their payloads.
    """
    if modality is None:
        if parts or thumbnails:
            raise CommandError("--parts and --thumbnails are of raw files: name their --modality")
        items, size = read_items(file), _LINES_AT_ONCE
    else:
        raw = RawItems(modality, in_parts=parts, thumbnail=thumbnails or None)
        items, size = raw.read(file), _FILES_AT_ONCE
    added, written = 0, None
    with Client(embeddings_url=embeddings_url) as client:
        try:
            while batch := list(islice(items, size)):
                written = client.add_items(name, batch, size)
                added += len(batch)
        except BaseException:
            if added:
                stderr().print(
                    f"{added:,} items of {file} were added to {name}; added again, they are replaced",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
            raise
    if written is None:
        raise CommandError(f"{file} has no items")
    say(f"{added:,} items added; {name} is at revision {written.revision}", written, as_json)


@app.command("remove")
def remove_items(
    name: CollectionName,
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="ids of items")],
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Remove items by id."""
    with Client(embeddings_url=embeddings_url) as client:
        written = client.remove_items(name, ids)
    say(f"{name} is at revision {written.revision}", written, as_json)


@app.command("export")
def export_collection(
    name: CollectionName,
    out: Annotated[Path, typer.Option(help="file to write")],
    form: Annotated[
        Literal["parquet", "arrow"],
        typer.Option("--format", help="arrow: a stream of Arrow IPC"),
    ] = "parquet",
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
) -> None:
    """Export the items with their vectors for another vector store."""
    with Client(embeddings_url=embeddings_url) as client:
        out.write_bytes(client.export_collection(name, form))


def search(  # noqa: PLR0913 - the options of a search
    name: CollectionName,
    modality: Annotated[
        str | None,
        typer.Argument(metavar="MODALITY", help="modality of the query; default text, for --text"),
    ] = None,
    feature: Annotated[
        Path | None, typer.Argument(metavar="FEATURE", help="JSON file with one feature")
    ] = None,
    *,
    text: Annotated[
        str | None, typer.Option(help="text to search with; needs an encoder at the endpoint")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="file to search with, e.g. an image; needs an encoder"),
    ] = None,
    words: Annotated[
        str | None,
        typer.Option(
            help="words to find in the collection's text fields; with a query the two rankings are fused"
        ),
    ] = None,
    among: Annotated[
        list[str] | None, typer.Option(help="search only items of this modality; repeatable")
    ] = None,
    where: Annotated[str | None, typer.Option(help="filter over payloads, as JSON")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="number of results")] = 10,
    exact: Annotated[
        bool, typer.Option("--exact", help="compare with every item, without the index")
    ] = False,
    by_parent: Annotated[
        bool, typer.Option("--by-parent", help="of parts with the same parent only the best one")
    ] = False,
    min_revision: Annotated[int, typer.Option(help="wait for this revision of the collection")] = 0,
    min_version: Annotated[int, typer.Option(help="wait for this version")] = 0,
    embeddings_url: EmbeddingsUrl = DEFAULT_QUERY_URL,
    as_json: AsJson = False,
) -> None:
    """Search a collection for the items nearest to a feature, a text or a file, or by words."""
    has_query = any(each is not None for each in (modality, feature, text, data))
    if not has_query and words is None:
        raise typer.BadParameter("give a query (MODALITY FEATURE, or --text), --words, or both")
    query = read_query(modality, feature, text, data) if has_query else None
    wanted = parse_filter(where)
    with Client(embeddings_url=embeddings_url) as client:
        found = client.search(
            name,
            query,
            top_k,
            words=words,
            modalities=among or None,
            filter=wanted,
            exact=exact,
            by_parent=by_parent,
            min_revision=min_revision,
            min_version=min_version,
        )
    show(found, as_json, _found)


def _view(collection: Collection) -> RenderableType:
    values = {title: value(collection) for title, value in _COLUMNS.items()}
    searched = collection.searched
    return fields(
        {
            **values,
            "not learned": _counts(searched.not_learned) if searched else None,
            "features": collection.feature_type,
            "vectors": collection.vector_type,
            "dimensions": collection.dimensions,
            "text fields": ", ".join(collection.text_fields) or None,
            "problem": searched.problem if searched else None,
        }
    )


def _found(found: SearchResults) -> RenderableType:
    how = "exact" if found.exact else "approximate"
    answered = f"by {found.model}, revision {found.revision}, {how}"
    hits = table(found.data, _HITS) if found.data else Text("no results")
    return Group(hits, Text(answered, style="dim"))
