"""`POST /v1/migrate`: map stored vectors of one version to those of another, without encoders; and how well vectors of
one version still fit another.

Both need the moments of the older version. They may have hundreds of megabytes, so they are read when they are
needed and not kept.

Shapes: B rows, E width of the embeddings.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import MigrationResponse
from cmcl.contract.errors import InvalidVersion, StorageUnavailable, WorkerError
from cmcl.contract.modality import ModalityPair
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import (
    considerate_sha256_of,
    read_memory_files,
    read_version,
    read_version_file,
)
from workers.model.artifact import SavedMemory, load_memory
from workers.model.migration import (
    CannotMigrate,
    NothingKept,
    NumberedHeads,
    OtherConditioning,
    TooInexact,
    check_error,
    check_same_conditioning,
    migration_between,
    same_conditioning,
)
from workers.nullspace.certificate import PairWeights, stored_change
from workers.nullspace.migrate import Migration
from workers.serve.api.context import (
    ANSWERED_VERSION,
    ASKED_VERSION,
    Replica,
    RequestContext,
    held_body,
    hold_answer,
    hold_until_sent,
    read_context,
    run_if_large,
    run_steps_if_large,
    within_deadline,
)
from workers.serve.api.openapi import BODY, BYTES, json_body, operation, query_parameters
from workers.serve.api.wire.requests import (
    Body,
    Encoding,
    Feature,
    entries_of,
    parse,
    parse_parameters,
)
from workers.serve.api.wire.vectors import (
    ARROW,
    JSON,
    RAW,
    Dtype,
    answer_bytes,
    binary_rows,
    check_count,
    checked,
    content_type_of,
    from_base64,
    from_lists,
    json_embeddings,
    vectors_response,
    width_of,
)
from workers.serve.background import BACKGROUND, AsyncLRUCache, BackgroundExecutor, Steps
from workers.serve.errors import (
    InvalidRequest,
    NotReady,
    Unprocessable,
    VersionDamaged,
    WrongRow,
    shortened,
)
from workers.serve.telemetry import StageTimer
from workers.serve.versions.live import ModelReference, parse_reference
from workers.serve.versions.loading import Float32Array, ServedVersion

logger = logging.getLogger(__name__)

# A map of width 1024 takes 8 MiB.
_MOST_MAPS = 16
_Key = tuple[tuple[str, float], tuple[str, float], str]
# Each is a number for each pair.
_MOST_KEPT = 1024
_Pair = tuple[tuple[str, float], tuple[str, float]]
Changes = Mapping[str, float | None]
_CODES = {
    OtherConditioning: ("other_conditioning", "from_version"),
    NothingKept: ("nothing_kept", "from_version"),
    TooInexact: ("too_inexact", "most_error"),
}


_Number = Annotated[int, Meta(ge=1, lt=10**9)]


class MigrateParameters(Body, kw_only=True):
    """Which vectors these are, and which to make. Query parameters, where the body is rows."""

    model: Annotated[str, Meta(description="name without a version", examples=["street-scenes"])]
    from_version: Annotated[_Number, Meta(description="of the stored vectors")]
    to_version: Annotated[
        _Number | None,
        Meta(description="of the vectors to make; by default the version that answers"),
    ] = None
    modality: Annotated[str, Meta(examples=["image"], description="of all rows")]
    most_error: Annotated[
        float,
        Meta(ge=0, le=1, description="relative error above which nothing is migrated"),
    ] = 0.5


class MigrateRequest(MigrateParameters, kw_only=True):
    """Stored vectors: as lists of numbers, or base64 of float32, little endian."""

    input: str | list[float | Feature | str]
    encoding_format: Annotated[Encoding, Meta(description="base64: float32, little endian")] = (
        "float"
    )


class _BinaryParameters(MigrateParameters, kw_only=True):
    dtype: Dtype = "float32"


def router(replica: Replica) -> APIRouter:
    made = APIRouter(tags=["migrate"])
    described = operation(
        "migrate_vectors",
        MigrationResponse,
        BODY | {409, 415, 422},
        body={**json_body(MigrateRequest), RAW: BYTES, ARROW: BYTES},
        parameters=[
            *ASKED_VERSION,
            *query_parameters(_BinaryParameters, "where the body is no JSON"),
        ],
        success={"headers": ANSWERED_VERSION, "content": {RAW: BYTES, ARROW: BYTES}},
    )
    made.post("/v1/migrate", **described)(_Migrate(replica).answer)
    return made


@dataclass(frozen=True)
class _Query:
    """`rows`: the vectors of a body, once it is known how wide they are and whose."""

    asked: MigrateParameters
    encoding: Encoding
    rows: Callable[[str, int], Float32Array]


class _Migrate:
    """Finds both versions and the map between them, and applies it: one product."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._migrations = Migrations(replica.store, replica.background)

    async def answer(self, request: Request) -> Response:
        """Map stored vectors to those of another version, and report how exactly.

        JSON; or rows as raw floats (`application/octet-stream`) or Arrow, and everything else as
        parameters. `Accept` asks for the answer in either of these forms.
        """
        replica, timer = self._replica, StageTimer(self._replica.metrics)
        context = read_context(request, replica)
        body = await held_body(request, replica, context.owner)
        async with within_deadline(context):
            most = replica.args.max_rows
            query = await run_if_large(
                replica, context.owner, len(body), _read, request, body, most
            )
            old, new = await self._versions(query.asked, context)
            for each in (old, new):
                width_of(query.asked.modality, each)
            what, width = f"a vector of {old.label}", old.spec.width
            vectors_BE = await run_if_large(
                replica, context.owner, len(body), query.rows, what, width
            )
            rows = len(vectors_BE)
            hold_until_sent(request, replica.admission.rows, context.owner, rows)
            size = answer_bytes(request, rows * new.spec.width, query.encoding)
            hold_answer(request, replica.admission.bytes, context.owner, size)
            found = await self._map(query.asked, old, new, context.owner)
            migrated_BE = await replica.background.run(context.owner, _apply, found, vectors_BE)
            owner, size = context.owner, migrated_BE.nbytes
            response = await run_steps_if_large(
                replica, owner, size, _response(request, query, (old, new), found, migrated_BE)
            )
        replica.metrics.answered(new.model, rows, timer.seconds)
        return response

    async def _versions(
        self, asked: MigrateParameters, context: RequestContext
    ) -> tuple[ServedVersion, ServedVersion]:
        name = parse_reference(asked.model)
        if name.version is not None:
            raise InvalidRequest(
                f"model is {shortened(asked.model)}; permitted is a name without a version, because the "
                "versions are in from_version and to_version",
                "model",
            )
        find = self._replica.lookup.find
        old = await find(ModelReference(name.name, asked.from_version), 0, context.caller)
        wanted = ModelReference(name.name, asked.to_version)
        return old, await find(wanted, context.min_version, context.caller)

    async def _map(
        self, asked: MigrateParameters, old: ServedVersion, new: ServedVersion, owner: str
    ) -> Migration:
        try:
            found = await self._migrations.between(asked.modality, old, new, owner)
            check_error(asked.modality, found, asked.most_error)
        except CannotMigrate as error:
            code, field = _CODES[type(error)]
            raise Unprocessable(str(error), field, code) from error
        except StorageUnavailable as error:
            message = f"the moments of {old.label} are unavailable; try again"
            raise NotReady(message, "from_version") from error
        except WorkerError as error:
            message = f"{old.label} is stored, but its moments fail their checks"
            raise VersionDamaged(message, "from_version") from error
        return found


def _read(request: Request, body: bytes, most: int) -> _Query:
    form = content_type_of(request)
    if form != JSON:
        asked = parse_parameters(_BinaryParameters, dict(request.query_params))
        return _Query(
            asked,
            "float",
            lambda what, width: binary_rows(form, body, asked.dtype, what, width, most),
        )
    read = parse(MigrateRequest, body)
    vectors = entries_of(read.input)
    check_count(len(vectors), most)

    def rows(what: str, width: int) -> Float32Array:
        if not isinstance(vectors[0], str):
            return from_lists(vectors, what, width)
        read = [from_base64(text, index, what, width) for index, text in enumerate(vectors)]
        return checked(np.stack(read))

    return _Query(read, read.encoding_format, rows)


@torch.inference_mode()
def _apply(found: Migration, vectors_BE: Float32Array) -> Float32Array:
    migrated_BE: Float32Array = found.apply_unit(torch.from_numpy(vectors_BE)).numpy()
    assert len(migrated_BE) == len(vectors_BE)
    lost = np.flatnonzero(~migrated_BE.any(axis=1))
    if len(lost):
        raise WrongRow(int(lost[0]), "has no component that the new version can represent")
    return migrated_BE


def _response(
    request: Request,
    query: _Query,
    versions: tuple[ServedVersion, ServedVersion],
    found: Migration,
    migrated_BE: Float32Array,
) -> Steps[Response]:
    old, new = versions
    figures = {
        "predicted_error": found.predicted_error,
        "error_on_rows": found.error_on_rows,
        "rank": found.rank,
        "condition": found.condition,
        "exact": found.exact,
    }
    headers = {
        "x-model-version": str(new.number),
        "x-from-version": str(old.number),
        **{f"x-{name.replace('_', '-')}": str(value).lower() for name, value in figures.items()},
    }
    migration = {
        "from_version": old.number,
        "to_version": new.number,
        "modality": query.asked.modality,
        **figures,
    }
    return vectors_response(
        request,
        migrated_BE,
        headers,
        lambda: json_embeddings(new.label, migrated_BE, query.encoding, migration=migration),
    )


def read_memory(store: ObjectStore, version: ServedVersion) -> SavedMemory:
    """Read the files of a version's memory, verified. Raises WorkerError."""
    manifest = read_version(store, version.model, version.number)
    if manifest.created_at != version.created_at:
        raise InvalidVersion(f"the store has another {version.label} by now")
    read = partial(read_version_file, store, manifest, hashed=considerate_sha256_of)
    return SavedMemory(*read_memory_files(manifest, read))


def identity_of(version: ServedVersion) -> tuple[str, float]:
    """An identity that also distinguishes versions of a model that was deleted and created again."""
    return version.label, version.created_at.timestamp()


class Migrations:
    """Maps between versions, cached. That there is none is cached as well: versions do not change."""

    def __init__(
        self, store: ObjectStore, background: BackgroundExecutor, most: int = _MOST_MAPS
    ) -> None:
        self._store = store
        self._background = background
        self._maps: AsyncLRUCache[_Key, Migration | CannotMigrate] = AsyncLRUCache(most)

    async def between(
        self, modality: str, old: ServedVersion, new: ServedVersion, owner: str = BACKGROUND
    ) -> Migration:
        """Return the map from the vectors of one version to those of the other.

        `owner`: whose turn it takes. Raises CannotMigrate, and WorkerError where the moments cannot be read.
        """
        asked = (identity_of(old), identity_of(new), modality)
        found = await self._maps.get(asked, lambda: self._find(modality, old, new, owner))
        if isinstance(found, CannotMigrate):
            raise type(found)(*found.args)  # A copy, because raising adds to the traceback.
        return found

    async def _find(
        self, modality: str, old: ServedVersion, new: ServedVersion, owner: str
    ) -> Migration | CannotMigrate:
        try:
            # Before the moments are read, which may have hundreds of megabytes.
            check_same_conditioning(modality, _numbered(old), _numbered(new))
        except CannotMigrate as error:
            return error
        assert old.model == new.model
        memory = await asyncio.to_thread(read_memory, self._store, old)
        return await self._background.run(owner, _map, modality, memory, old, new)


@torch.inference_mode()
def _map(
    modality: str, memory: SavedMemory, old: ServedVersion, new: ServedVersion
) -> Migration | CannotMigrate:
    try:
        return migration_between(modality, load_memory(memory), _numbered(old), _numbered(new))
    except CannotMigrate as error:
        return error


def _numbered(version: ServedVersion) -> NumberedHeads:
    return NumberedHeads(version.number, version.heads)


class Compatibilities:
    """Whether stored vectors of old versions still fit: computed in the background, on request.

    Used from one event loop.
    """

    def __init__(self, store: ObjectStore, background: BackgroundExecutor) -> None:
        self._store = store
        self._background = background
        self._found: AsyncLRUCache[_Pair, Changes] = AsyncLRUCache(_MOST_KEPT)
        # The moments of one version are in memory at a time.
        self._turn = asyncio.Semaphore(1)

    def known(self, old: ServedVersion, new: ServedVersion) -> Changes | None:
        """Return by key of each pair that the old version has learned: the relative change (root mean
        square) of the scores of its stored vectors under queries of the new version, the larger of
        the two sides. None where the versions read features differently, so that nothing can be
        said from moments. None altogether while it is being computed.
        """
        key = (identity_of(old), identity_of(new))
        return self._found.peek(key, lambda: self._find(old, new))

    async def _find(self, old: ServedVersion, new: ServedVersion) -> Changes:
        async with self._turn:
            try:
                memory = await asyncio.to_thread(read_memory, self._store, old)
                return await self._background.run(BACKGROUND, _changes, memory, old, new)
            except Exception as error:
                # No request awaits it; the next one for this model begins it again.
                is_bug = not isinstance(error, WorkerError)
                logger.warning(
                    "%s and %s cannot be compared: %s", old.label, new.label, error, exc_info=is_bug
                )
                raise


@torch.inference_mode()
def _changes(
    memory: SavedMemory, old_version: ServedVersion, new_version: ServedVersion
) -> Changes:
    # In a thread, because they may have to be loaded.
    old, new = old_version.heads, new_version.heads
    found: dict[str, float | None] = {}
    for (first, second), moments in load_memory(memory).by_pair.items():
        key = ModalityPair(first=first, second=second).key
        comparable = all(same_conditioning(each, old, new) for each in (first, second))
        weights = [PairWeights(each.weights[first], each.weights[second]) for each in (old, new)]
        assert weights[0].first_EI.shape == weights[1].first_EI.shape or not comparable
        found[key] = stored_change(moments, *weights) if comparable else None
    return found
