"""`/v1/collections`: create, list and delete collections; add and remove items.

A write that is answered with success is durable, and in the revision of the answer.
"""

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cmcl.contract.api.endpoint import (
    Collection,
    CollectionList,
    DeletedCollection,
    WriteResult,
)
from cmcl.contract.errors import WorkerError
from workers.serve.api.collection_access import (
    ANSWERED_REVISION,
    REPEATABLE,
    REVISION,
    api_error,
    checked_name,
    collections_of,
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
    held_body,
    read_context,
    run_if_large,
    within_deadline,
)
from workers.serve.api.inputs import features_of
from workers.serve.api.openapi import BODY, WAIT, json_body, operation
from workers.serve.api.wire.collection_bodies import (
    CollectionItem,
    CollectionRequest,
    ItemsRequest,
    RemovalRequest,
    parse_items,
    parse_removal,
    payload_text,
)
from workers.serve.api.wire.requests import parse
from workers.serve.collections.follower import CollectionSnapshot
from workers.serve.collections.registry import CollectionSpec, Life
from workers.serve.collections.table import Head, Row
from workers.serve.errors import InvalidRequest
from workers.serve.versions.live import ModelReference, parse_reference
from workers.serve.versions.loading import Float32Array, ServedVersion

_CREATE = operation(
    "create_collection",
    Collection,
    BODY | {409, 501, 507},
    body=json_body(CollectionRequest),
    parameters=[TIMEOUT],
    success={"headers": ANSWERED_REVISION},
)
_LIST = operation("list_collections", CollectionList, (WAIT - {404}) | {501}, parameters=[TIMEOUT])
_SHOW = operation(
    "read_collection",
    Collection,
    WAIT | {501},
    parameters=[TIMEOUT],
    success={"headers": ANSWERED_REVISION},
)
_DELETE = operation(
    "delete_collection", DeletedCollection, (WAIT - {504}) | {501}, parameters=[REPEATABLE]
)
_ADD = operation(
    "add_items",
    WriteResult,
    BODY | {409, 501, 507},
    body=json_body(ItemsRequest),
    parameters=[*ASKED_VERSION, REPEATABLE],
    success={"headers": ANSWERED_REVISION},
)
_REMOVE = operation(
    "delete_items",
    WriteResult,
    BODY | {501, 507},
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
        context = read_context(request, replica)
        collections = collections_of(replica)
        body = await held_body(request, replica, context.owner)
        owner, most = context.owner, replica.args.max_rows
        async with within_deadline(context):
            wanted = await run_if_large(
                replica, owner, len(body), parse, CollectionRequest, body, most
            )
            checked_name(name)
            model = _name_alone(wanted.model)
            await replica.lookup.find(model, 0, context.caller)
        spec = CollectionSpec(name, model.name, context.caller.owner, wanted.feature_type)
        return await self._answer(await in_store(collections.create, spec))

    async def list_all(self, request: Request) -> Response:
        """List all collections of the caller, by name."""
        context = read_context(request, self._replica)
        collections = collections_of(self._replica)
        with self._replica.admission.requests.held(context.owner, 1):
            async with within_deadline(context):
                lives = await in_store(collections.all, listed_for(context.caller))
                heads = [await in_store(collections.head, each) for each in lives]
        data = [
            _described(life, head, collections.snapshot(life.name))
            for life, head in zip(lives, heads, strict=True)
        ]
        # The owner of a collection that cannot be read is unknown.
        damage = collections.damaged() if context.caller.owns(None) else {}
        damaged = [{"id": name, "reason": reason} for name, reason in sorted(damage.items())]
        return JSONResponse({"object": "list", "data": data, "damaged": damaged})

    async def show(self, name: str, request: Request) -> Response:
        """Show one collection: what is stored, and what this replica searches."""
        context = read_context(request, self._replica)
        with self._replica.admission.requests.held(context.owner, 1):
            async with within_deadline(context):
                return await self._answer(await find(self._replica, name, context.caller))

    async def delete(self, name: str, request: Request) -> Response:
        """Delete a collection with all its items."""
        context = read_context(request, self._replica)
        collections, caller = collections_of(self._replica), context.caller
        with self._replica.admission.requests.held(context.owner, 1):
            mark = await mark_of_write(request, caller)
            await in_store(collections.delete, checked_name(name), permitted_to(caller), mark)
        return JSONResponse({"id": name, "object": "collection.deleted", "deleted": True})

    async def _answer(self, life: Life) -> Response:
        collections = collections_of(self._replica)
        head = await in_store(collections.head, life)
        described = _described(life, head, collections.snapshot(life.name))
        return JSONResponse(described, headers={REVISION: str(head.revision)})


class _Items:
    """Items of collections. Each request is one atomic change."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def add(self, name: str, request: Request) -> Response:
        """Add items; existing ones with the same id are replaced."""
        replica = self._replica
        context = read_context(request, replica)
        collections_of(replica)
        body = await held_body(request, replica, context.owner)
        owner, most = context.owner, replica.args.max_rows
        async with within_deadline(context):
            limits = (most, replica.args.max_payload_bytes)
            read = await run_if_large(replica, owner, len(body), parse_items, body, *limits)
            items = read.items
            target = await find(replica, name, context.caller)
            mark = await mark_of_write(request, context.caller, body)
            payloads = await run_if_large(replica, owner, len(body), self._payloads, items)
            model = ModelReference(target.model, None)
            version = await replica.lookup.find(model, context.min_version, context.caller)
            self._check_room(target, len(items))
            with replica.admission.rows.held(context.owner, len(items)):
                rows = await self._rows(version, items, context.owner)
            entries = [
                Row(item.id, item.modality, row_F, payload)
                for item, row_F, payload in zip(items, rows, payloads, strict=True)
            ]
        return await self._write(target, entries, mark)

    async def remove(self, name: str, request: Request) -> Response:
        """Remove items; a missing one is not an error."""
        replica = self._replica
        context = read_context(request, replica)
        collections_of(replica)
        body = await held_body(request, replica, context.owner)
        owner, most = context.owner, replica.args.max_rows
        async with within_deadline(context):
            read = await run_if_large(replica, owner, len(body), parse_removal, body, most)
            ids = read.ids
            target = await find(replica, name, context.caller)
            mark = await mark_of_write(request, context.caller, body)
        entries = [Row(each, "", None, None) for each in dict.fromkeys(ids)]
        return await self._write(target, entries, mark)

    def _payloads(self, items: Sequence[CollectionItem]) -> list[str | None]:
        most = self._replica.args.max_payload_bytes
        return [payload_text(item.payload, index, most) for index, item in enumerate(items)]

    async def _rows(
        self, version: ServedVersion, items: Sequence[CollectionItem], owner: str
    ) -> list[Float32Array]:
        """The feature of each item."""
        found: dict[int, Float32Array] = {}
        for part in await features_of(self._replica, version, items, "items", owner=owner):
            found.update(zip(part.positions_B.tolist(), part.rows_BF, strict=True))
        return [found[position] for position in range(len(items))]

    async def _write(
        self,
        target: Life,
        entries: Sequence[Row],
        mark: str | None,
    ) -> Response:
        collections = collections_of(self._replica)
        # Shielded: a write cannot be undone half-way, and its end wakes requests that wait for it.
        written = await asyncio.shield(in_store(collections.write, target, entries, mark))
        return _written(target, written, len(entries))

    def _check_room(self, target: Life, rows: int) -> None:
        """Check limits by what this replica has read: a collection can get a little larger than permitted."""
        try:
            collections_of(self._replica).check_room(target, rows)
        except WorkerError as error:
            raise api_error(error) from error


def _written(life: Life, number: int, rows: int) -> Response:
    answer = {"object": "collection.write", "id": life.name, "rows": rows, "revision": number}
    return JSONResponse(answer, headers={REVISION: str(number)})


def _name_alone(text: str) -> ModelReference:
    reference = parse_reference(text)
    if reference.version is not None:
        raise InvalidRequest(
            f"model is {text!r}; permitted is a name without a version, since a collection follows the "
            "live version",
            "model",
        )
    return reference


def _described(life: Life, head: Head, snapshot: CollectionSnapshot | None) -> dict[str, object]:
    return {
        "id": life.name,
        "object": "collection",
        "model": life.model,
        "feature_type": life.feature_type,
        "revision": head.revision,
        "created": int(life.created_at.timestamp()),
        "changed": int(head.changed),
        "damaged": snapshot.problem if snapshot is not None and snapshot.is_damaged else None,
        "searched": _searched(snapshot),
    }


def _searched(snapshot: CollectionSnapshot | None) -> dict[str, object] | None:
    """What this replica searches; null until it has vectors."""
    if snapshot is None or snapshot.searched is None:
        return (
            None if snapshot is None or snapshot.problem is None else {"problem": snapshot.problem}
        )
    searched = snapshot.searched
    missing = searched.version.not_learned
    return {
        "version": searched.version.number,
        "revision": searched.revision,
        "rows": {name: rows for name, rows in searched.modalities.items() if name not in missing},
        "not_learned": {
            name: rows for name, rows in searched.modalities.items() if name in missing
        },
        "progress": snapshot.progress,
        "problem": snapshot.problem,
    }
