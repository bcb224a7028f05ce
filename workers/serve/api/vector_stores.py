"""`/v1/vector_stores`: collections as OpenAI's API names them, to be read and searched by its clients.

A vector store is a collection, its id the name, and a file is an item; `text` of a file is that of the collection's
`text_fields`, or else the payload. Texts that are searched for are embedded, as those of `/v1/embeddings` are.
Collections are created and filled by `/v1/collections`.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
import orjson
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import (
    VectorStore,
    VectorStoreFile,
    VectorStoreFileList,
    VectorStoreList,
    VectorStoreSearchPage,
)
from workers.serve.api.collection_access import find, in_store, listed_for
from workers.serve.api.context import (
    ASKED_VERSION,
    TIMEOUT,
    Replica,
    admitted,
    json_answer,
    posted,
)
from workers.serve.api.openapi import BODY, WAIT, json_body, operation, query_parameters
from workers.serve.api.search import Search, headers_of
from workers.serve.api.wire.collection_bodies import MOST_FILTER_BYTES, SearchRequest
from workers.serve.api.wire.requests import Body, Item, parse, parse_number, parse_object
from workers.serve.collections.filters import text_of
from workers.serve.collections.searching import Hit, Searched, StoredItem
from workers.serve.collections.table import State
from workers.serve.errors import InvalidRequest, NotFound, shortened

_MOST_LISTED, _MOST_FOUND, _MOST_QUERIES = 100, 50, 16
_RANGES = ("gt", "gte", "lt", "lte")


class RankingOptions(Body, kw_only=True):
    """Of OpenAI's API. There is one ranker, the cosine of embeddings."""

    ranker: Annotated[str | None, Meta(description="without effect")] = None
    score_threshold: Annotated[float | None, Meta(description="the lowest score of a result")] = (
        None
    )


class VectorStoreSearch(Body, kw_only=True):
    """The body of a search in OpenAI's API."""

    INSIDE = RankingOptions

    query: Annotated[
        str | Annotated[list[str], Meta(min_length=1, max_length=_MOST_QUERIES)],
        Meta(description="a text, or several; an item has its best score"),
    ]
    filters: Annotated[
        msgspec.Raw,
        Meta(
            description="comparisons of attributes, and `and` and `or` of them",
            extra_json_schema={"type": ["object", "null"]},
        ),
    ] = msgspec.field(default_factory=msgspec.Raw)
    max_num_results: Annotated[int, Meta(ge=1, le=_MOST_FOUND)] = 10
    ranking_options: RankingOptions | None = None
    rewrite_query: Annotated[
        bool, Meta(description="queries are not rewritten", extra_json_schema={"enum": [False]})
    ] = False


class _Listing(Body, kw_only=True):
    """Parameters of lists."""

    limit: Annotated[int, Meta(ge=1, le=_MOST_LISTED)] = 20
    after: Annotated[str, Meta(description="the last id of the page before")] = ""


def router(replica: Replica) -> APIRouter:
    """The routes of this replica."""
    made = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])
    stores = _VectorStores(replica)
    one, pages = [TIMEOUT], [*query_parameters(_Listing), TIMEOUT]
    for path, handler, name, answer, parameters in (
        ("", stores.list_all, "list_vector_stores", VectorStoreList, pages),
        ("/{store}", stores.show, "read_vector_store", VectorStore, one),
        ("/{store}/files", stores.files, "list_vector_store_files", VectorStoreFileList, pages),
        ("/{store}/files/{file:path}", stores.file, "read_vector_store_file", VectorStoreFile, one),
    ):
        errors = WAIT if path else WAIT - {404}
        described = operation(name, answer, errors, parameters=parameters)
        made.add_api_route(path, handler, methods=["GET"], **described)
    found = operation(
        "search_vector_store",
        VectorStoreSearchPage,
        BODY | {409},
        body=json_body(VectorStoreSearch),
        parameters=ASKED_VERSION,
    )
    made.post("/{store}/search", **found)(stores.search)
    return made


class _VectorStores:
    """Routes of OpenAI's API over collections."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._search = Search(replica)

    async def list_all(self, request: Request) -> Response:
        """List the caller's collections by name."""
        async with admitted(request, self._replica) as context:
            after, limit = _page(request)
            states = await in_store(self._replica.collections.all, listed_for(context.caller))
        found = [_store(each) for each in states if each.head.spec.name > after]
        return _listed(found, limit)

    async def show(self, store: str, request: Request) -> Response:
        """Show one collection."""
        async with admitted(request, self._replica) as context:
            return json_answer(_store(await find(self._replica, store, context.caller)))

    async def search(self, store: str, request: Request) -> Response:
        """Search with one or several texts; an item found by several has its best score."""
        read = partial(parse, VectorStoreSearch)
        async with posted(request, self._replica, read) as (context, _, asked):
            queries = [asked.query] if isinstance(asked.query, str) else asked.query
            if asked.rewrite_query:
                raise InvalidRequest("rewrite_query is true; permitted is false", "rewrite_query")
            filters = parse_object(asked.filters, "filters", MOST_FILTER_BYTES)
            filter_ = msgspec.Raw()
            if filters is not None:
                filter_ = msgspec.Raw(orjson.dumps(_filter(filters, "filters")))
            wanted = [
                SearchRequest(
                    query=Item(modality="text", text=text),
                    top_k=asked.max_num_results,
                    filter=filter_,
                )
                for text in queries
            ]
            # One state for all texts: a swap between them would mix the scores of two versions.
            searched = await self._search.searched(store, request, context)
            found = await asyncio.gather(
                *(self._search.found(searched, context, each) for each in wanted)
            )
        best: dict[str, Hit] = {}
        for hit in sorted(
            (hit for result in found for hit in result.hits), key=lambda hit: hit.score
        ):
            best[hit.id] = hit
        lowest = asked.ranking_options.score_threshold if asked.ranking_options else None
        hits = sorted(best.values(), key=lambda hit: (-hit.score, hit.id))[: asked.max_num_results]
        answer = {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": [
                _result(hit, searched) for hit in hits if lowest is None or hit.score >= lowest
            ],
            "has_more": False,
            "next_page": None,
        }
        return json_answer(answer, headers_of(searched))

    async def files(self, store: str, request: Request) -> Response:
        """List items by id."""
        async with admitted(request, self._replica) as context:
            after, limit = _page(request)
            searched = await self._search.searched(store, request, context)
            with self._replica.admission.rows.held(context.owner, limit):
                items = await self._search.read(context, searched.items_after, after, limit + 1)
        return _listed([_file(each, searched) for each in items], limit)

    async def file(self, store: str, file: str, request: Request) -> Response:
        """Show one item."""
        async with admitted(request, self._replica) as context:
            searched = await self._search.searched(store, request, context)
            item = await self._search.read(context, searched.item, file)
        if item is None:
            raise NotFound(f"there is no item {shortened(file)} in collection {store!r}", "file")
        return json_answer(_file(item, searched))


def _page(request: Request) -> tuple[str, int]:
    limit = request.query_params.get("limit", "20")
    return request.query_params.get("after", ""), parse_number(limit, "limit", 1, _MOST_LISTED)


def _listed(found: list[dict[str, Any]], limit: int) -> Response:
    data = found[:limit]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    answer = {"object": "list", "data": data, "first_id": first, "last_id": last}
    return json_answer(answer | {"has_more": len(found) > limit})


def _store(state: State) -> dict[str, Any]:
    head = state.head
    others = dict.fromkeys(("in_progress", "failed", "cancelled"), 0)
    return {
        "id": head.spec.name,
        "object": "vector_store",
        "name": head.spec.name,
        "created_at": int(head.created_at.timestamp()),
        "last_active_at": int(head.changed_at.timestamp()),
        "status": "completed" if head.complete else "in_progress",
        "file_counts": {"completed": state.rows, "total": state.rows} | others,
        "usage_bytes": 0,
        "metadata": {"model": head.spec.model},
    }


def _file(item: StoredItem, searched: Searched) -> dict[str, Any]:
    return {
        "id": item.id,
        "object": "vector_store.file",
        "created_at": int(searched.state.head.created_at.timestamp()),
        "vector_store_id": searched.state.head.spec.name,
        "status": "completed",
        "usage_bytes": len(item.payload or ""),
        "last_error": None,
        "attributes": _attributes(item),
    }


def _result(hit: Hit, searched: Searched) -> dict[str, Any]:
    attributes = _attributes(hit)
    text = text_of(hit.payload, searched.state.head.spec.text_fields) or hit.payload or ""
    return {
        "file_id": hit.id,
        "filename": str(attributes.get("filename", hit.parent or hit.id)),
        "score": hit.score,
        "attributes": attributes,
        "content": [{"type": "text", "text": text}],
    }


def _attributes(item: StoredItem) -> dict[str, str | float | bool]:
    payload = orjson.loads(item.payload or "{}")
    kept = {name: value for name, value in payload.items() if isinstance(value, str | int | float)}
    return {"modality": item.modality} | kept


def _filter(given: object, where: str) -> dict[str, Any]:
    """Return one of our filters; what it compares is checked as theirs is. Raises InvalidRequest."""
    if isinstance(given, Mapping):
        kind, field, value = given.get("type"), given.get("key"), given.get("value")
        if kind in ("and", "or") and isinstance(given.get("filters"), list):
            parts = enumerate(given["filters"])
            return {kind: [_filter(each, f"{where}.filters[{at}]") for at, each in parts]}
        if kind in _RANGES:
            return {"field": field, "range": {kind: value}}
        if kind in ("eq", "ne", "in", "nin"):
            plain = {"field": field, "equals" if kind in ("eq", "ne") else "in": value}
            return {"not": plain} if kind in ("ne", "nin") else plain
    raise InvalidRequest(
        f"{where} is {shortened(ascii(given))}; permitted are comparisons "
        '{"type": "eq", "ne", "gt", "gte", "lt", "lte", "in" or "nin", "key": ..., "value": ...} and '
        '{"type": "and" or "or", "filters": [...]}',
        "filters",
    )
