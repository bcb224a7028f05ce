"""`POST /v1/similarity`: score items of any modalities against each other by one version.

Shapes: Q queries, C candidates, K best, E width of the embeddings.
"""

import orjson
import torch
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from workers.serve.api.context import (
    ANSWERED_VERSION,
    ASKED_VERSION,
    Replica,
    cancel_on_disconnect,
    held_body,
    read_context,
    run_if_large,
)
from workers.serve.api.inputs import embed_parts, features_of
from workers.serve.api.limits import hold_until_sent
from workers.serve.api.openapi import BODY, json_body, operation
from workers.serve.api.wire.formats import JSON
from workers.serve.api.wire.requests import STRICT, Items, parse
from workers.serve.api.wire.responses import SimilarityResponse
from workers.serve.api.wire.rows import check_count
from workers.serve.errors import InvalidRequest
from workers.serve.telemetry import StageTimer
from workers.serve.versions.loading import Float32Array, ServedVersion
from workers.serve.versions.lookup import parse_reference

# Fewer scores than these are sorted and written in less time than a hop to another thread takes.
_INLINE_SCORES = 4096
# Writing JSON holds the interpreter: these take 20 ms.
_MOST_SCORES = 1 << 18


class SimilarityRequest(BaseModel):
    """Two lists of items; every query is scored against every candidate."""

    model_config = STRICT

    model: str = Field(
        description="name, or name@version for exactly that one", examples=["street-scenes"]
    )
    queries: Items
    candidates: Items
    top_k: int | None = Field(
        default=None, ge=1, description="the best of each query; by default all scores"
    )


def router(replica: Replica) -> APIRouter:
    """The route of this replica."""
    made = APIRouter(tags=["similarity"])
    described = operation(
        "score_similarity",
        SimilarityResponse,
        BODY | {409},
        body=json_body(SimilarityRequest),
        parameters=ASKED_VERSION,
        success={"headers": ANSWERED_VERSION},
    )
    made.post("/v1/similarity", **described)(_Similarity(replica).answer)
    return made


class _Similarity:
    """Both lists are embedded by the same version, and count together."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def answer(self, request: Request) -> Response:
        """Score each query against each candidate, or return the best candidates of each query."""
        replica, timer = self._replica, StageTimer(self._replica.metrics)
        context = read_context(request, replica)
        body = await held_body(request, replica, context.tenant)
        async with cancel_on_disconnect(request, context):
            most = replica.args.max_rows
            query = await run_if_large(
                replica, context.tenant, len(body), parse, SimilarityRequest, body, most
            )
            self._check_sizes(query)
            version = await replica.lookup.find(
                parse_reference(query.model), context.min_version, context.caller
            )
            rows, tenant = len(query.queries) + len(query.candidates), context.tenant
            hold_until_sent(request, replica.admission.rows, tenant, rows)
            sides = [
                await features_of(replica, version, query.queries, "queries", tenant=tenant),
                await features_of(replica, version, query.candidates, "candidates", tenant=tenant),
            ]
            embedded = [
                await embed_parts(replica, version, parts, ticket=context.ticket) for parts in sides
            ]
            answer = await self._scored(tenant, version, query.top_k, *embedded)
        replica.metrics.answered(version.model, rows, timer.seconds)
        headers = {"x-model-version": str(version.number)}
        return Response(answer, media_type=JSON, headers=headers)

    def _check_sizes(self, query: SimilarityRequest) -> None:
        most, wanted = self._replica.args.max_rows, (len(query.queries), len(query.candidates))
        for field, rows in zip(("queries", "candidates"), wanted, strict=True):
            check_count(rows, most, field)
        if sum(wanted) > most:
            raise InvalidRequest(
                f"queries and candidates have {sum(wanted)} rows together; permitted are {most}",
                "candidates",
            )
        scores = wanted[0] * min(query.top_k or wanted[1], wanted[1])
        if scores > _MOST_SCORES:
            raise InvalidRequest(
                f"the answer would have {scores} scores; permitted are {_MOST_SCORES}: send fewer "
                "queries, or ask for the best with top_k",
                "top_k",
            )

    async def _scored(
        self,
        tenant: str,
        version: ServedVersion,
        top_k: int | None,
        queries_QE: Float32Array,
        candidates_CE: Float32Array,
    ) -> bytes:
        if len(queries_QE) * len(candidates_CE) <= _INLINE_SCORES:
            return _answer(version.label, top_k, queries_QE, candidates_CE)
        compute = self._replica.compute
        return await compute.run(tenant, _answer, version.label, top_k, queries_QE, candidates_CE)


def _answer(
    label: str, top_k: int | None, queries_QE: Float32Array, candidates_CE: Float32Array
) -> bytes:
    scores_QC = queries_QE @ candidates_CE.T
    answer: dict[str, object] = {"object": "similarity", "model": label}
    if top_k is None:
        answer["scores"] = scores_QC
    else:
        answer["results"] = _best(scores_QC, min(top_k, len(candidates_CE)))
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def _best(scores_QC: Float32Array, most: int) -> list[list[dict[str, object]]]:
    """Return the best first; `index` is the position of the candidate in the request."""
    scores_QK, indices_QK = torch.from_numpy(scores_QC).topk(most, dim=1)
    return [
        [{"index": index, "score": score} for index, score in zip(*one, strict=True)]
        for one in zip(indices_QK.tolist(), scores_QK.tolist(), strict=True)
    ]
