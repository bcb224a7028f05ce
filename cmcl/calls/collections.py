"""Collections at the query endpoint: search that follows the model."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from cmcl.calls.embeddings import content_of
from cmcl.errors import InvalidArgument
from cmcl.flow.api import Api, given, json_bytes, listed, read, segment, validated
from cmcl.flow.effects import Exchange, Flow, Items, Side
from cmcl.flow.effects import Item as Listed
from cmcl.types import Collection, Found, Item, Query, Written

_PATH = "/v1/collections"


def create_collection(
    api: Api, name: str, model: str, feature_type: str = "float32"
) -> Flow[Collection]:
    """Make a collection that follows `model`; one with the same properties is answered as it is."""
    body = {"model": model, "feature_type": feature_type}
    response = yield from api.send(_request("PUT", _at(name), body))
    return read(Collection, response, Side.EMBEDDINGS)


def collections(api: Api) -> Items[Collection]:
    """All collections, by name."""
    response = yield from api.send(_request("GET", _PATH))
    for each in listed(response, "data", Side.EMBEDDINGS)["data"]:
        yield Listed(validated(Collection, each, response))


def collection(api: Api, name: str) -> Flow[Collection]:
    """One collection: what is stored, and what the replica that answers searches."""
    response = yield from api.send(_request("GET", _at(name)))
    return read(Collection, response, Side.EMBEDDINGS)


def delete_collection(api: Api, name: str) -> Flow[None]:
    """Remove a collection with all its items."""
    yield from api.send(_request("DELETE", _at(name), headers=_once(api)))


def add_items(api: Api, name: str, items: Iterable[Item], at_once: int = 1000) -> Flow[Written]:
    """Add items; those that are there by the same id are replaced.

    So many at once as one change, which is seen as a whole; the answer is that of the last.
    """
    return _in_pieces(api, f"{_at(name)}/items", "items", map(_item, items), at_once)


def remove_items(api: Api, name: str, ids: Iterable[str], at_once: int = 1000) -> Flow[Written]:
    """Remove items; one that is not there is no error."""
    return _in_pieces(api, f"{_at(name)}/items/delete", "ids", ids, at_once)


def search(  # noqa: PLR0913 - what can be said about a search
    api: Api,
    name: str,
    query: Query,
    top_k: int = 10,
    *,
    modalities: Sequence[str] | None = None,
    filter: Mapping[str, Any] | None = None,  # noqa: A002 - as the endpoint calls it
    exact: bool = False,
    min_revision: int = 0,
    min_version: int = 0,
) -> Flow[Found]:
    """The items nearest to one of any modality, by the version that is live.

    `filter`: over payloads, docs/search.md has the language. `min_revision`: not before this change
    is seen, e.g. that of `add_items`; `min_version`: nor before this version answers.
    """
    body: dict[str, Any] = {"query": content_of(query), "top_k": top_k, "exact": exact}
    body |= {"modalities": list(modalities)} if modalities is not None else {}
    body |= {"filter": dict(filter)} if filter is not None else {}
    headers = {"x-min-collection-revision": min_revision, "x-min-model-version": min_version}
    said = {header: str(least) for header, least in headers.items() if least}
    response = yield from api.send(_request("POST", f"{_at(name)}/search", body, said))
    return read(Found, response, Side.EMBEDDINGS)


def export_collection(api: Api, name: str, form: str, table: str | None = None) -> Flow[bytes]:
    """All items with their vectors, for another store; in memory, so not for millions.

    `form`: qdrant (JSON lines of points), pgvector (CSV for COPY) or pgvector-ddl (its table).
    """
    params = given(format=form, table=table)
    request = Exchange("GET", f"{_at(name)}/export", Side.EMBEDDINGS, params)
    response = yield from api.send(request)
    return response.content


def _in_pieces(
    api: Api, path: str, field: str, entries: Iterable[object], at_once: int
) -> Flow[Written]:
    left, written = iter(entries), None
    while piece := list(islice(left, at_once)):
        response = yield from api.send(_request("POST", path, {field: piece}, _once(api)))
        written = read(Written, response, Side.EMBEDDINGS)
    if written is None:
        raise InvalidArgument(f"there are no {field}; at least one is needed")
    return written


def _once(api: Api) -> dict[str, str]:
    """Sent again with this, a write is not done again."""
    return {"idempotency-key": api.new_key()}


def _request(
    method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Exchange:
    kind = {} if body is None else {"content-type": "application/json"}
    content = json_bytes(body)
    return Exchange(
        method, path, Side.EMBEDDINGS, headers={**kind, **(headers or {})}, content=content
    )


def _at(name: str) -> str:
    return f"{_PATH}/{segment(name)}"


def _item(item: Item) -> dict[str, Any]:
    payload = {} if item.payload is None else {"payload": dict(item.payload)}
    return {"id": item.id, **content_of(item), **payload}
