"""`/v1/collections`: create, list and delete collections; add and remove items.

A write that is answered with success is durable, and in the revision of the answer.
"""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import (
    Collection,
    CollectionList,
    DeletedCollection,
    WriteResult,
)
from cmcl.contract.errors import WorkerError
from workers.encoders.parts import Part
from workers.serve.api.collection_access import (
    ANSWERED_REVISION,
    REPEATABLE,
    REVISION,
    api_error,
    checked_name,
    find,
    in_store,
    listed_for,
    mark_of_write,
    permitted_to,
)
from workers.serve.api.context import (
    ASKED_VERSION,
    TIMEOUT,
    Replica,
    admitted,
    json_answer,
    posted,
    read_context,
    run_if_large,
)
from workers.serve.api.inputs import checked_dimensions, encoded_parts, features_of
from workers.serve.api.openapi import BODY, WAIT, json_body, operation
from workers.serve.api.wire.collection_bodies import (
    CollectionItem,
    CollectionRequest,
    ItemsRequest,
    RemovalRequest,
    check_different,
    parse_items,
    parse_removal,
    part_id,
    payload_text,
    thumbnail_of,
)
from workers.serve.api.wire.requests import parse
from workers.serve.collections.follower import CollectionSnapshot
from workers.serve.collections.table import CollectionSpec, Row, State, removal
from workers.serve.errors import InvalidRequest
from workers.serve.versions.live import ModelReference, parse_reference
from workers.serve.versions.loading import Float32Array, ServedVersion

_CREATE = operation(
    "create_collection",
    Collection,
    BODY | {409, 507},
    body=json_body(CollectionRequest),
    parameters=[TIMEOUT],
    success={"headers": ANSWERED_REVISION},
)
_LIST = operation("list_collections", CollectionList, WAIT - {404}, parameters=[TIMEOUT])
_SHOW = operation(
    "read_collection",
    Collection,
    WAIT,
    parameters=[TIMEOUT],
    success={"headers": ANSWERED_REVISION},
)
_DELETE = operation("delete_collection", DeletedCollection, WAIT - {504}, parameters=[REPEATABLE])
_ADD = operation(
    "add_items",
    WriteResult,
    BODY | {409, 507},
    body=json_body(ItemsRequest),
    parameters=[*ASKED_VERSION, REPEATABLE],
    success={"headers": ANSWERED_REVISION},
)
_REMOVE = operation(
    "delete_items",
    WriteResult,
    BODY | {507},
    body=json_body(RemovalRequest),
    parameters=[TIMEOUT, REPEATABLE],
    success={"headers": ANSWERED_REVISION},
)


def router(replica: Replica) -> APIRouter:
    """The routes of this replica."""
    made = APIRouter(prefix="/v1/collections", tags=["collections"])
    collections, items = _Collections(replica), _Items(replica)
    for method, path, described, handler in (
        ("PUT", "/{name}", _CREATE, collections.create),
        ("GET", "", _LIST, collections.list_all),
        ("GET", "/{name}", _SHOW, collections.show),
        ("DELETE", "/{name}", _DELETE, collections.delete),
        ("POST", "/{name}/items", _ADD, items.add),
        ("POST", "/{name}/items/delete", _REMOVE, items.remove),
    ):
        made.add_api_route(path, handler, methods=[method], **described)
    return made


class _Collections:
    """Collections without their items."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def create(self, name: str, request: Request) -> Response:
        """Create a collection; an existing one with the same properties is returned as it is."""
        replica = self._replica
        read = partial(parse, CollectionRequest)
        async with posted(request, replica, read) as (context, _, wanted):
            checked_name(name)
            model = _name_alone(wanted.model)
            version = await replica.lookup.find(model, 0, context.caller)
            checked_dimensions(wanted.dimensions, version)
        spec = CollectionSpec(
            name=name,
            model=model.name,
            owner=context.caller.owner,
            feature_type=wanted.feature_type,
            vector_type=wanted.vector_type,
            dimensions=wanted.dimensions,
            text_fields=tuple(wanted.text_fields),
        )
        return self._answer(await in_store(replica.collections.create, spec))

    async def list_all(self, request: Request) -> Response:
        """List all collections of the caller, by name."""
        collections = self._replica.collections
        async with admitted(request, self._replica) as context:
            states = await in_store(collections.all, listed_for(context.caller))
        data = [
            _described(each, collections.follower.snapshots().get(each.head.spec.name))
            for each in states
        ]
        # The owner of a collection that cannot be read is unknown.
        damage = collections.follower.damaged() if context.caller.owns(None) else {}
        damaged = [{"id": name, "reason": reason} for name, reason in sorted(damage.items())]
        return json_answer({"object": "list", "data": data, "damaged": damaged})

    async def show(self, name: str, request: Request) -> Response:
        """Show one collection: what is stored, and what this replica searches."""
        async with admitted(request, self._replica) as context:
            return self._answer(await find(self._replica, name, context.caller))

    async def delete(self, name: str, request: Request) -> Response:
        """Delete a collection with all its items."""
        context = read_context(request, self._replica)
        collections, caller = self._replica.collections, context.caller
        with self._replica.admission.requests.held(context.owner, 1):
            mark = await mark_of_write(request, caller)
            await in_store(collections.delete, checked_name(name), permitted_to(caller), mark)
        return json_answer({"id": name, "object": "collection.deleted", "deleted": True})

    def _answer(self, state: State) -> Response:
        snapshot = self._replica.collections.follower.snapshots().get(state.head.spec.name)
        headers = {REVISION: str(state.head.revision)}
        return json_answer(_described(state, snapshot), headers=headers)


class _Items:
    """Items of collections. Each request is one atomic change."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def add(self, name: str, request: Request) -> Response:
        """Add items; existing ones with the same id are replaced."""
        replica = self._replica
        read = partial(parse_items, most=replica.args.max_rows)
        async with posted(request, replica, read) as (context, body, parsed):
            items, owner = parsed.items, context.owner
            target = await find(replica, name, context.caller)
            mark = await mark_of_write(request, context.caller, body)
            payloads = await run_if_large(replica, owner, len(body), self._payloads, items)
            model = ModelReference(target.head.spec.model, None)
            version = await replica.lookup.find(model, context.min_version, context.caller)
            self._check_room(target, len(items), mark)
            with replica.admission.rows.held(context.owner, len(items)):
                parts = await self._parts(version, items, context.owner)
            entries = [
                row
                for item, parts_of, stored in zip(items, parts, payloads, strict=True)
                for row in _rows(item, parts_of, *stored)
            ]
            check_different([row.id for row in entries])
        # A file replaces the parts of an earlier one with its id; a piece those from its start on.
        replaced: dict[str, float] = {}
        for item in items:
            if item.data is not None:
                replaced[item.id] = min(item.start or 0.0, replaced.get(item.id, math.inf))
        return await self._write(target, entries, mark, replaced)

    async def remove(self, name: str, request: Request) -> Response:
        """Remove items; a missing one is not an error."""
        replica = self._replica
        read = partial(parse_removal, most=replica.args.max_rows)
        async with posted(request, replica, read) as (context, body, parsed):
            ids = parsed.ids
            target = await find(replica, name, context.caller)
            mark = await mark_of_write(request, context.caller, body)
        entries = [removal(each) for each in dict.fromkeys(ids)]
        return await self._write(target, entries, mark, dict.fromkeys(ids, 0.0))

    def _payloads(self, items: Sequence[CollectionItem]) -> list[tuple[str | None, bytes | None]]:
        """Return payloads and thumbnails, as they are stored. Raises InvalidRequest."""
        most = self._replica.args.max_payload_bytes
        return [
            (payload_text(item, index, most), thumbnail_of(item, index))
            for index, item in enumerate(items)
        ]

    async def _parts(
        self, version: ServedVersion, items: Sequence[CollectionItem], owner: str
    ) -> list[list[Part[Float32Array]]]:
        """Return the feature of each item, or those of its parts."""
        whole, split = list[CollectionItem](), list[CollectionItem]()
        for item in items:
            (split if item.parts or item.thumbnail is True else whole).append(item)
        found: dict[int, list[Part[Float32Array]]] = {}
        for rows in await features_of(self._replica, version, whole, "items", owner=owner):
            for position, row_F in zip(rows.positions_B.tolist(), rows.rows_BF, strict=True):
                found[id(whole[position])] = [Part(row_F)]
        encoded = [
            asyncio.ensure_future(encoded_parts(self._replica, version, item, owner=owner))
            for item in split
        ]
        try:
            found.update(zip(map(id, split), await asyncio.gather(*encoded), strict=True))
        finally:
            # After an error, files that were not encoded need not be.
            for each in encoded:
                each.cancel()
        return [found[id(item)] for item in items]

    async def _write(
        self,
        target: State,
        entries: Sequence[Row],
        mark: str | None,
        replaced: Mapping[str, float],
    ) -> Response:
        collections = self._replica.collections
        # Shielded: a write cannot be undone half-way, and its end wakes requests that wait for it.
        written = await asyncio.shield(in_store(collections.write, target, entries, mark, replaced))
        answer = {
            "object": "collection.write",
            "id": target.head.spec.name,
            "rows": len(entries),
            "revision": written,
        }
        return json_answer(answer, headers={REVISION: str(written)})

    def _check_room(self, target: State, rows: int, mark: str | None) -> None:
        """Check limits by what this replica has read: a collection can get a little larger than permitted."""
        try:
            self._replica.collections.check_room(target, rows, mark)
        except WorkerError as error:
            raise api_error(error) from error


def _rows(
    item: CollectionItem,
    parts: Sequence[Part[Float32Array]],
    payload: str | None,
    thumbnail: bytes | None,
) -> Iterator[Row]:
    """Yield the row of an item, or those of its parts."""
    for part in parts:
        id_, parent, start, end = item.id, item.parent, item.start, item.end
        if part.start is not None and part.end is not None:
            parent, first = item.id, item.start or 0.0
            # To the millisecond.
            start, end = round(first + part.start, 3), round(first + part.end, 3)
            id_ = part_id(item.id, start, end)
        small = thumbnail or part.thumbnail or None
        yield Row(id_, item.modality, part.of, payload, parent, start, end, item.source, small)


def _name_alone(text: str) -> ModelReference:
    reference = parse_reference(text)
    if reference.version is not None:
        raise InvalidRequest(
            f"model is {text!r}; permitted is a name without a version, since a collection follows the "
            "live version",
            "model",
        )
    return reference


def _described(state: State, snapshot: CollectionSnapshot | None) -> dict[str, object]:
    head = state.head
    return {
        "id": head.spec.name,
        "object": "collection",
        "model": head.spec.model,
        "feature_type": head.spec.feature_type,
        "vector_type": head.spec.vector_type,
        "dimensions": head.spec.dimensions,
        "text_fields": list(head.spec.text_fields),
        "revision": head.revision,
        "created": int(head.created_at.timestamp()),
        "changed": int(head.changed_at.timestamp()),
        "damaged": snapshot.problem if snapshot is not None and snapshot.is_damaged else None,
        "searched": _searched(snapshot),
    }


def _searched(snapshot: CollectionSnapshot | None) -> dict[str, object] | None:
    """What this replica searches; null where it has nothing to say."""
    if snapshot is None:
        return None
    work: dict[str, object] = {
        "progress": snapshot.progress,
        "seconds_left": snapshot.seconds_left,
        "problem": snapshot.problem,
    }
    if snapshot.searched is None:
        return None if set(work.values()) == {None} else work
    searched = snapshot.searched
    missing = searched.version.not_learned
    return {
        "version": searched.version.number,
        "revision": searched.revision,
        "rows": {name: rows for name, rows in searched.modalities.items() if name not in missing},
        "not_learned": {
            name: rows for name, rows in searched.modalities.items() if name in missing
        },
        **work,
    }
