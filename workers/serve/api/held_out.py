"""`/v1/models/{model}/held-out/{dataset}`: held-out rows of a dataset, and a search among them by any version.

What a version gives for an item can be seen this way without a collection, and two versions can be compared. Rows are read
from the store when they are requested.

Shapes: N rows, B rows to search for, F width of the raw feature, E width of the embeddings, K best.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import pyarrow as pa
from fastapi import APIRouter
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import HeldOutList, HeldOutRanks, HeldOutResults
from cmcl.contract.dataset import Shard
from cmcl.contract.errors import (
    InvalidDataset,
    InvalidVersion,
    ObjectNotFound,
    StorageUnavailable,
)
from cmcl.contract.modality import ModalityPair
from cmcl.storage.datasets import read_dataset_manifest
from cmcl.storage.object_store import ObjectStore
from workers.files.columns import FEATURES, float32_rows
from workers.files.shards import Scratch, open_in_pieces, open_verified, rows_at_once
from workers.serve.api.context import (
    ANSWERED_VERSION,
    TIMEOUT,
    Replica,
    RequestContext,
    admitted,
    json_answer,
    posted,
)
from workers.serve.api.inputs import embed_parts, features_of
from workers.serve.api.openapi import BODY, WAIT, json_body, operation
from workers.serve.api.wire.requests import (
    LARGEST_OFFSET,
    MOST_LISTED,
    Body,
    Item,
    parse,
    parse_number,
)
from workers.serve.background import AsyncLRUCache
from workers.serve.errors import (
    InvalidRequest,
    NotFound,
    NotReady,
    Unprocessable,
    VersionDamaged,
    shortened,
)
from workers.serve.versions.live import parse_reference
from workers.serve.versions.loading import Float32Array, ServedVersion, StoredVersions

# Rows that are searched, the first ones: with two sides 1,000 wide, 16 MiB for each dataset in memory.
MOST_ROWS = 2048
_IN_MEMORY = 4
# A shard is read whole, to verify it.
_LARGEST_SHARD = 256 << 20


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """The first held-out rows of a dataset. `stored`: how many there are. `labels`: None without that column."""

    pair: ModalityPair
    stored: int
    ids: tuple[str, ...]
    labels: tuple[str, ...] | None
    features: Mapping[str, Float32Array]

    def __post_init__(self) -> None:
        assert self.labels is None or len(self.labels) == len(self.ids)
        assert all(len(each) == len(self.ids) for each in self.features.values())
        assert len(self.ids) <= self.stored

    def __len__(self) -> int:
        return len(self.ids)

    def label(self, row: int) -> str | None:
        return None if self.labels is None else self.labels[row]


class HeldOutSets:
    """Reads held-out rows. The last few sets stay in memory. For use on one event loop."""

    def __init__(self, store: ObjectStore, most_rows: int = MOST_ROWS) -> None:
        """`most_rows`: of each set."""
        self._store = store
        self._most_rows = most_rows
        self._versions = StoredVersions(store)
        self._sets: AsyncLRUCache[str, HeldOutRows] = AsyncLRUCache(_IN_MEMORY)

    async def of(self, model: str, version: int, dataset: str) -> HeldOutRows:
        """The held-out rows of a dataset that this version has learned.

        Raises NotFound, NotReady, Unprocessable, VersionDamaged.
        """
        try:
            pair = await asyncio.to_thread(self._pair, model, version, dataset)
            return await self._sets.get(
                dataset,
                lambda: asyncio.to_thread(_read, self._store, dataset, pair, self._most_rows),
            )
        except StorageUnavailable as error:
            raise NotReady(
                "object storage is unavailable; try again", code="store_unavailable"
            ) from error
        except (InvalidDataset, InvalidVersion) as error:
            raise VersionDamaged(
                f"the held-out rows of dataset {dataset!r} fail their checks", "dataset"
            ) from error

    def _pair(self, model: str, version: int, dataset: str) -> ModalityPair:
        """The pair of a dataset. What the version has not learned is not there, also if another model has it."""
        try:
            learned = self._versions.manifest(model, version).learned
        except ObjectNotFound as error:
            raise NotFound(f"model {model!r} has no version {version}", "model") from error
        for line in learned:
            if line.dataset == dataset:
                return line.pair
        raise NotFound(f"{model}@{version} has learned no dataset {dataset!r}", "dataset")


def _read(store: ObjectStore, dataset: str, pair: ModalityPair, most_rows: int) -> HeldOutRows:
    """Raises NotFound, Unprocessable, InvalidDataset, InvalidVersion, StorageUnavailable."""
    manifest = read_dataset_manifest(store, dataset)
    shards = manifest.evaluation_shards if manifest else ()
    if not shards:
        raise NotFound(f"dataset {dataset!r} has no held-out rows", "dataset")
    tables: list[pa.Table] = []
    left = most_rows
    for shard in shards:
        if left:
            tables.append(_first_rows(shard, left))
            left -= tables[-1].num_rows
    has_labels = all("label" in table.column_names for table in tables)
    return HeldOutRows(
        pair,
        sum(shard.rows for shard in shards),
        _texts(tables, "id"),
        _texts(tables, "label") if has_labels else None,
        {
            modality: np.concatenate([float32_rows(table.column(column)) for table in tables])
            for modality, column in zip(pair.modalities, FEATURES, strict=True)
        },
    )


def _first_rows(shard: Shard, most: int) -> pa.Table:
    if shard.bytes > _LARGEST_SHARD:
        raise Unprocessable(
            f"the held-out rows are in a file of {shard.bytes} bytes; permitted here are {_LARGEST_SHARD}"
        )
    with open_verified(shard, Scratch(_LARGEST_SHARD)).reading() as source:
        file = open_in_pieces(source)
        wanted = [name for name in ("id", "label", *FEATURES) if name in file.schema_arrow.names]
        batches: list[pa.RecordBatch] = []
        for batch in file.iter_batches(min(most, rows_at_once(file.schema_arrow)), columns=wanted):
            batches.append(batch.slice(0, most))
            most -= batches[-1].num_rows
            if not most:
                break
    return pa.Table.from_batches(batches)


def _texts(tables: list[pa.Table], column: str) -> tuple[str, ...]:
    return tuple(str(text) for table in tables for text in table.column(column).to_pylist())


class HeldOutSearch(Body, kw_only=True):
    """A search among held-out rows: for one of them (`row` and its `modality`), or for any item (`query`)."""

    INSIDE = Item

    row: Annotated[
        Annotated[int, Meta(ge=0, lt=MOST_ROWS)] | None,
        Meta(description="number of a held-out row"),
    ] = None
    modality: Annotated[str | None, Meta(description="the side of that row")] = None
    query: Item | None = None
    among: Annotated[
        str | None,
        Meta(
            description="modality of what is found, one of the dataset's pair; default: the other one than that of "
            "the row, or both for a query of neither"
        ),
    ] = None
    top_k: Annotated[int, Meta(ge=1, le=MOST_LISTED)] = 10


class HeldOutRanking(Body, kw_only=True):
    """A search for one side of each of the first held-out rows, among the other side of all."""

    modality: Annotated[
        str | None,
        Meta(description="the side to search for; default: the first one of the pair"),
    ] = None
    limit: Annotated[int, Meta(ge=1, le=MOST_LISTED, description="rows to search for")] = 50


_PAGE = tuple(
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in (
        ("offset", {"type": "integer", "minimum": 0}),
        ("limit", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED}),
    )
)


def router(replica: Replica) -> APIRouter:
    made = APIRouter(prefix="/v1/models/{model}/held-out/{dataset}", tags=["models"])
    routes = _HeldOut(replica)
    listed = operation(
        "list_held_out_rows",
        HeldOutList,
        WAIT | {422},
        parameters=[*_PAGE, TIMEOUT],
        success={"headers": ANSWERED_VERSION},
    )
    searched = operation(
        "search_held_out_rows",
        HeldOutResults,
        BODY | {409, 422},
        body=json_body(HeldOutSearch),
        parameters=[TIMEOUT],
        success={"headers": ANSWERED_VERSION},
    )
    ranked = operation(
        "rank_held_out_rows",
        HeldOutRanks,
        BODY | {409, 422},
        body=json_body(HeldOutRanking),
        parameters=[TIMEOUT],
        success={"headers": ANSWERED_VERSION},
    )
    made.get("", **listed)(routes.rows)
    made.post("/ranks", **ranked)(routes.ranks)
    made.post("/search", **searched)(routes.search)
    return made


class _HeldOut:
    """Rows are read from the store, and embedded for each search: a person looks at them now and then."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._sets = HeldOutSets(replica.store)

    async def rows(self, model: str, dataset: str, request: Request) -> Response:
        """List held-out rows of a dataset that the version has learned: ids and labels, `limit` (50) after `offset`."""
        async with admitted(request, self._replica) as context:
            parameters = request.query_params
            offset = parse_number(parameters.get("offset", "0"), "offset", 0, LARGEST_OFFSET)
            limit = parse_number(parameters.get("limit", "50"), "limit", 1, MOST_LISTED)
            version, found = await self._find(model, dataset, context)
        shown = range(len(found))[offset : offset + limit]
        answer = {
            "object": "list",
            "dataset": dataset,
            "pair": list(found.pair.modalities),
            "rows": len(found),
            "rows_stored": found.stored,
            "data": [_row(found, row) for row in shown],
            "next_offset": shown.stop if shown and shown.stop < len(found) else None,
        }
        return json_answer(answer, {"x-model-version": str(version.number)})

    async def search(self, model: str, dataset: str, request: Request) -> Response:
        """Search the held-out rows nearest to one of them, or to an item, by one version.

        The first 2048 rows are compared.
        """
        replica = self._replica
        read = partial(parse, HeldOutSearch)
        async with posted(request, replica, read) as (context, _, wanted):
            version, found = await self._find(model, dataset, context)
            asked, sides = _sides(wanted, found)
            assert sides, "nothing would be searched"
            rows = 1 + len(found) * len(sides)
            with replica.admission.rows.held(context.owner, rows):
                query_E = await self._query(version, wanted, found, context)
                scores = {
                    side: await self._scores(version, found, side, query_E, context)
                    for side in sides
                }
        answer = {
            "object": "list",
            "data": _best(found, scores, wanted.top_k),
            "model": version.label,
            "dataset": dataset,
            "rows": len(found),
            "partner": _partner(wanted.row, asked, scores),
        }
        return json_answer(answer, {"x-model-version": str(version.number)})

    async def ranks(self, model: str, dataset: str, request: Request) -> Response:
        """Search for one side of each of the first `limit` (50) held-out rows, by one version.

        Each row has the rank of its other side, and what was found first. The first 2048 rows are compared.
        """
        replica = self._replica
        read = partial(parse, HeldOutRanking)
        async with posted(request, replica, read) as (context, _, wanted):
            version, found = await self._find(model, dataset, context)
            pair = found.pair.modalities
            asked = pair[0] if wanted.modality is None else wanted.modality
            if asked not in pair:
                raise _not_a_side("modality", asked, found)
            other, features_BF = (
                pair[1] if asked == pair[0] else pair[0],
                found.features[asked][: wanted.limit],
            )
            with replica.admission.rows.held(context.owner, len(features_BF) + len(found)):
                asked_BE, other_NE = [
                    await replica.batcher.embed(version, side, features, ticket=context.ticket)
                    for side, features in ((asked, features_BF), (other, found.features[other]))
                ]
        assert len(asked_BE) <= len(other_NE) == len(found), "a row without its other side"
        scores_BN = asked_BE @ other_NE.T
        ranks_B = 1 + np.count_nonzero(scores_BN > np.diagonal(scores_BN)[:, None], axis=1)
        # Ties by number.
        firsts_B = scores_BN.argmax(axis=1).tolist()
        answer = {
            "object": "list",
            "data": [
                {**_row(found, row), "rank": rank}
                | {"first": _hit(found, first, other, float(scores_BN[row, first]))}
                for row, (rank, first) in enumerate(zip(ranks_B.tolist(), firsts_B, strict=True))
            ],
            "model": version.label,
            "modality": asked,
            "rows": len(found),
        }
        return json_answer(answer, {"x-model-version": str(version.number)})

    async def _find(
        self, model: str, dataset: str, context: RequestContext
    ) -> tuple[ServedVersion, HeldOutRows]:
        version = await self._replica.lookup.find(parse_reference(model), 0, context.caller)
        return version, await self._sets.of(version.model, version.number, dataset)

    async def _query(
        self,
        version: ServedVersion,
        wanted: HeldOutSearch,
        found: HeldOutRows,
        context: RequestContext,
    ) -> Float32Array:
        if wanted.query is not None:
            parts = await features_of(
                self._replica, version, [wanted.query], "query", owner=context.owner
            )
            embedded_BE = await embed_parts(self._replica, version, parts, ticket=context.ticket)
        else:
            row_BF = found.features[wanted.modality or ""][wanted.row : (wanted.row or 0) + 1]
            embedded_BE = await self._replica.batcher.embed(
                version, wanted.modality or "", row_BF, ticket=context.ticket
            )
        query_E: Float32Array = embedded_BE[0]
        return query_E

    async def _scores(
        self,
        version: ServedVersion,
        found: HeldOutRows,
        side: str,
        query_E: Float32Array,
        context: RequestContext,
    ) -> Float32Array:
        """Cosines of all rows of one side with the query."""
        embedded_NE = await self._replica.batcher.embed(
            version, side, found.features[side], ticket=context.ticket
        )
        scores_N: Float32Array = np.vecdot(embedded_NE, query_E)
        assert scores_N.shape == (len(found),)
        return scores_N


def _sides(wanted: HeldOutSearch, found: HeldOutRows) -> tuple[str, Sequence[str]]:
    """The modality that is asked for, and those that are searched. Raises InvalidRequest."""
    pair = found.pair.modalities
    if (wanted.query is None) == (wanted.row is None):
        raise InvalidRequest("give either a row or a query", "row")
    if wanted.row is not None:
        if wanted.modality not in pair:
            raise _not_a_side("modality", wanted.modality, found)
        if wanted.row >= len(found):
            raise InvalidRequest(f"row is {wanted.row}; permitted are 0 to {len(found) - 1}", "row")
    if wanted.among is not None and wanted.among not in pair:
        raise _not_a_side("among", wanted.among, found)
    asked = wanted.query.modality if wanted.query is not None else wanted.modality or ""
    if wanted.among is not None:
        return asked, [wanted.among]
    return asked, [side for side in pair if side != asked]


def _not_a_side(field: str, value: object, found: HeldOutRows) -> InvalidRequest:
    permitted = " and ".join(found.pair.modalities)
    return InvalidRequest(f"{field} is {shortened(value)}; the dataset has {permitted}", field)


def _hit(found: HeldOutRows, row: int, side: str, score: float) -> dict[str, object]:
    return {**_row(found, row), "modality": side, "score": score}


def _row(found: HeldOutRows, row: int) -> dict[str, object]:
    return {"row": row, "id": found.ids[row], "label": found.label(row)}


def _best(
    found: HeldOutRows, scores: dict[str, Float32Array], top_k: int
) -> list[dict[str, object]]:
    """The best rows of all sides, best first; ties by number."""
    hits = [
        (-float(score), row, side)
        for side, scores_N in scores.items()
        for row, score in enumerate(scores_N.tolist())
    ]
    return [_hit(found, row, side, -negative) for negative, row, side in sorted(hits)[:top_k]]


def _partner(
    row: int | None, asked: str, scores: dict[str, Float32Array]
) -> dict[str, object] | None:
    """Rank and score of the row's own other side; None without a row, or where that side was not searched."""
    if row is None or len(scores) != 1 or asked in scores:
        return None
    (scores_N,) = scores.values()
    score = scores_N[row]
    return {"rank": 1 + int(np.count_nonzero(scores_N > score)), "score": float(score)}
