"""`/v1/collections/{name}/search`, `/items` and `/export`: by one version at one revision."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

import orjson
import pybase64
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cmcl.contract.api.endpoint import ItemsResponse, SearchResults
from cmcl.contract.errors import WorkerError
from workers.serve.api.collection_access import (
    ANSWERED_REVISION,
    ASKED_REVISION,
    MIN_REVISION,
    REVISION,
    api_error,
    checked_name,
    find,
    not_found,
)
from workers.serve.api.context import (
    ANSWERED_VERSION,
    ASKED_VERSION,
    Replica,
    RequestContext,
    admitted,
    hold_until_sent,
    json_answer,
    posted,
)
from workers.serve.api.inputs import embed_parts, features_of
from workers.serve.api.openapi import BODY, BYTES, WAIT, json_body, operation
from workers.serve.api.wire.collection_bodies import (
    INCLUDED,
    MOST_FILTER_BYTES,
    SearchRequest,
)
from workers.serve.api.wire.requests import (
    LARGEST_OFFSET,
    MOST_LISTED,
    Item,
    parse,
    parse_number,
    parse_object,
)
from workers.serve.api.wire.vectors import width_of
from workers.serve.auth import Caller
from workers.serve.batcher import Ticket
from workers.serve.collections.exports import FORMATS, exported
from workers.serve.collections.filters import InvalidFilter
from workers.serve.collections.follower import CollectionSnapshot
from workers.serve.collections.searching import Searched, SearchQuery, SearchResult, StoredItem
from workers.serve.errors import InvalidRequest, NotFound, NotReady, shortened
from workers.serve.telemetry import StageTimer
from workers.serve.versions.live import parse_version
from workers.serve.versions.loading import Float32Array, ServedVersion

_WAIT_STEP_SECONDS = 0.02
P = ParamSpec("P")
T = TypeVar("T")


def router(replica: Replica) -> APIRouter:
    made = APIRouter(prefix="/v1/collections", tags=["collections"])
    search = Search(replica)
    found = operation(
        "search_collection",
        SearchResults,
        BODY | {409},
        body=json_body(SearchRequest),
        parameters=[*ASKED_VERSION, ASKED_REVISION],
        success={"headers": ANSWERED_VERSION | ANSWERED_REVISION},
    )
    exported = operation(
        "export_collection",
        None,
        WAIT,
        parameters=[*_EXPORTED, *ASKED_VERSION, ASKED_REVISION],
        success={
            "headers": ANSWERED_VERSION | ANSWERED_REVISION,
            "content": {kind: BYTES for _, kind in FORMATS.values()},
        },
    )
    listed = operation(
        "list_items",
        ItemsResponse,
        WAIT | {409},
        parameters=[*_LISTED, *ASKED_VERSION, ASKED_REVISION],
        success={"headers": ANSWERED_VERSION | ANSWERED_REVISION},
    )
    made.post("/{name}/search", **found)(search.answer)
    made.get("/{name}/items", **listed)(search.items)
    made.get("/{name}/export", response_class=StreamingResponse, **exported)(search.export)
    return made


def _parameter(name: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema}


_EXPORTED = (_parameter("format", {"type": "string", "enum": [*FORMATS]}, required=True),)


_LISTED = (
    _parameter("offset", {"type": "integer", "minimum": 0}, required=False),
    _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED}, required=False),
    _parameter("modality", {"type": "string"}, required=False),
    _parameter(
        "id",
        {
            "type": "array",
            "items": {"type": "string"},
            "maxItems": MOST_LISTED,
            "description": "of these items only; `rows` counts them all",
        },
        required=False,
    ),
    _parameter(
        "include",
        {"type": "string", "description": f"of {', '.join(INCLUDED)}, with commas"},
        required=False,
    ),
)


class Search:
    """One state of a collection answers, and its version embeds the query."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def answer(self, name: str, request: Request) -> Response:
        """Search the items nearest to one item of any modality, those whose payloads have given words, or both.

        `x-min-collection-revision` and `x-min-model-version` wait for a revision and a version, for a while, before
        503.
        """
        read = partial(parse, SearchRequest)
        async with posted(request, self._replica, read) as (context, _, query):
            searched = await self.searched(name, request, context)
            found = await self.found(searched, context, query)
        answer = {
            "object": "list",
            "data": [_described(hit, query.include) | {"score": hit.score} for hit in found.hits],
            "model": searched.version.label,
            "revision": searched.revision,
            "exact": found.exact,
        }
        return json_answer(answer, headers_of(searched))

    async def found(
        self, searched: Searched, context: RequestContext, query: SearchRequest
    ) -> SearchResult:
        """Embed the query by the version of this state, and search it. Raises ApiError."""
        replica, timer = self._replica, StageTimer(self._replica.metrics)
        wanted = self._wanted(query, searched)
        with replica.admission.rows.held(context.owner, 1):
            if query.query is not None:
                query_E = await self._embedded(searched.version, query.query, context.ticket)
                wanted = replace(wanted, query_E=query_E)
            found = await self.read(context, searched.search, wanted)
            assert len(found.hits) <= wanted.top_k
        replica.metrics.answered(searched.version.model, 1, timer.seconds)
        return found

    async def read(
        self, context: RequestContext, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Read a table in the background, with the caller's share. Raises ApiError."""
        try:
            return await self._replica.searches.run(context.owner, do, *args, **kwargs)
        except WorkerError as error:
            raise api_error(error) from error

    async def items(self, name: str, request: Request) -> Response:
        """List items with their payloads, `limit` (50) after `offset`, of one modality or of all.

        The order changes with the revision, and when the table is compacted.
        """
        async with admitted(request, self._replica) as context:
            parameters = request.query_params
            offset = parse_number(parameters.get("offset", "0"), "offset", 0, LARGEST_OFFSET)
            limit = parse_number(parameters.get("limit", "50"), "limit", 1, MOST_LISTED)
            modality, include = parameters.get("modality"), _included(parameters.get("include"))
            ids = parameters.getlist("id")
            if len(ids) > MOST_LISTED:
                raise InvalidRequest(f"{len(ids)} ids, permitted: at most {MOST_LISTED}", "id")
            searched = await self.searched(name, request, context)
            if modality is not None:
                width_of(modality, searched.version, "modality")
            with self._replica.admission.rows.held(context.owner, limit):
                found = await self.read(
                    context, searched.items, offset, limit, modality, include, ids
                )
        rows = await self.read(context, searched.rows, modality)
        following = offset + len(found)
        assert not found or following <= rows
        answer = {
            "object": "list",
            "data": [_described(each, include) for each in found],
            "model": searched.version.label,
            "revision": searched.revision,
            "rows": rows,
            "next_offset": following if found and following < rows and not ids else None,
        }
        return json_answer(answer, headers_of(searched))

    async def export(self, name: str, request: Request) -> Response:
        """Export all items with their vectors as a Parquet file or an Arrow stream."""
        async with admitted(request, self._replica) as context:
            format_ = request.query_params.get("format", "")
            if format_ not in FORMATS:
                raise InvalidRequest(
                    f"format is {shortened(format_)}; permitted are {', '.join(FORMATS)}", "format"
                )
            searched = await self.searched(name, request, context)
        hold_until_sent(request, self._replica.admission.exports, context.owner, 1)
        _, kind = FORMATS[format_]
        content, headers = exported(searched, format_), headers_of(searched)
        return StreamingResponse(content, media_type=kind, headers=headers)

    async def searched(self, name: str, request: Request, context: RequestContext) -> Searched:
        """Raises InvalidRequest, NotFound, NotReady."""
        min_revision = parse_version(request.headers.get(MIN_REVISION), MIN_REVISION)
        waits = _Waiting(self._replica, checked_name(name), context.caller)
        return await waits.searched(context.min_version, min_revision)

    def _wanted(self, query: SearchRequest, searched: Searched) -> SearchQuery:
        most = self._replica.args.max_top_k
        if query.top_k > most:
            raise InvalidRequest(
                f"top_k is {shortened(query.top_k)}; permitted are 1 to {most}", "top_k"
            )
        if query.query is None and query.words is None:
            raise InvalidRequest("query and words are missing; give one of them, or both", "query")
        if query.words is not None and not searched.state.head.spec.text_fields:
            raise InvalidRequest(
                "words is given, but the collection has no text_fields, whose words could be searched: name "
                "them when you create a collection",
                "words",
            )
        for modality in query.modalities or ():
            width_of(modality, searched.version, "modalities")
        filter_ = parse_object(query.filter, "filter", MOST_FILTER_BYTES)
        try:
            wanted = None if filter_ is None else searched.filter_sql(filter_)
        except InvalidFilter as error:
            raise InvalidRequest(str(error), "filter") from error
        modalities = frozenset(query.modalities) if query.modalities else None
        return SearchQuery(
            query.top_k,
            words=query.words,
            modalities=modalities,
            filter=wanted,
            exact=query.exact,
            by_parent=query.by_parent,
            include=tuple(dict.fromkeys(query.include)),
        )

    async def _embedded(self, version: ServedVersion, query: Item, ticket: Ticket) -> Float32Array:
        parts = await features_of(self._replica, version, [query], "query", owner=ticket.owner)
        embeddings_BE = await embed_parts(self._replica, version, parts, ticket=ticket)
        query_E: Float32Array = embeddings_BE[0]
        return query_E


class _Waiting:
    """Waits until this replica searches a state that is new enough, as long as x-min-... may wait."""

    def __init__(self, replica: Replica, name: str, caller: Caller) -> None:
        self._replica = replica
        self._collections = replica.collections
        self._name = name
        self._caller = caller

    async def searched(self, min_version: int, min_revision: int) -> Searched:
        """Raises NotFound, NotReady."""
        searched = self._new_enough(min_version, min_revision)
        if searched is not None:
            return searched
        await self._check_exists()
        self._collections.follower.wake()
        deadline = self._now() + self._replica.args.min_version_wait_seconds
        while searched is None and self._now() < deadline:
            await asyncio.sleep(_WAIT_STEP_SECONDS)
            searched = self._new_enough(min_version, min_revision)
        if searched is None:
            raise self._not_ready(min_version, min_revision)
        return searched

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _snapshot(self) -> CollectionSnapshot | None:
        """The state of the collection; None for one of another owner, as for one that does not exist."""
        snapshot = self._collections.follower.snapshots().get(self._name)
        return snapshot if snapshot and self._caller.owns(snapshot.state.head.spec.owner) else None

    def _new_enough(self, min_version: int, min_revision: int) -> Searched | None:
        snapshot = self._snapshot()
        searched = snapshot.searched if snapshot else None
        if (
            searched is None
            or searched.version.number < min_version
            or searched.revision < min_revision
        ):
            return None
        return searched

    async def _check_exists(self) -> None:
        """Check the store: another replica may have created it a moment ago."""
        state = await find(self._replica, self._name, self._caller)
        model = state.head.spec.model
        pointer = self._replica.live.pointer(model)
        if self._replica.live.readiness.ready and (
            pointer is None or not self._caller.sees(pointer.owner)
        ):
            raise NotFound(
                f"collection {self._name!r} is of model {model!r}, and there is no such model",
                "model",
            )

    def _not_ready(self, min_version: int, min_revision: int) -> NotReady | NotFound:
        snapshot, seconds = self._snapshot(), self._replica.args.min_version_wait_seconds
        if snapshot is None:
            return not_found(f"there is no collection {self._name!r}")
        if snapshot.searched is None:
            return NotReady(
                f"the vectors of collection {self._name!r} are being computed",
                code="collection_not_ready",
            )
        searched = snapshot.searched
        return NotReady(
            f"collection {self._name!r} is at revision {searched.revision} with version "
            f"{searched.version.number}; asked for are at least {min_revision} and {min_version}, which "
            f"did not come within {seconds:g} s",
            code="collection_not_ready",
        )


def headers_of(searched: Searched) -> dict[str, str]:
    return {"x-model-version": str(searched.version.number), REVISION: str(searched.revision)}


def _included(text: str | None) -> list[str]:
    """Parse the parameter `include`. Raises InvalidRequest."""
    names = [*dict.fromkeys(text.split(","))] if text else []
    if wrong := [name for name in names if name not in INCLUDED]:
        raise InvalidRequest(
            f"include is {shortened(wrong[0])}; permitted are {', '.join(INCLUDED)}", "include"
        )
    return names


def _described(item: StoredItem, include: Sequence[str]) -> dict[str, object]:
    # A payload as it is stored: every one that was accepted can be written.
    payload = None if item.payload is None else orjson.Fragment(item.payload)
    at = None if item.start is None else {"start": item.start, "end": item.end}
    described: dict[str, object] = {"id": item.id, "modality": item.modality, "payload": payload}
    described |= {"parent": item.parent, "at": at}
    if "source" in include:
        described["source"] = item.source
    if "thumbnail" in include:
        data = item.thumbnail
        described["thumbnail"] = None if data is None else pybase64.b64encode(data).decode()
    return described
