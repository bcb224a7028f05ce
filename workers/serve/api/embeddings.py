"""`POST /v1/embeddings`: the main path of the endpoint.

Shapes: B rows, E width of the embeddings.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from workers.serve.api.admission import hold_answer, hold_until_sent
from workers.serve.api.context import (
    ANSWERED_CHANNEL,
    ROUTED,
    Replica,
    RequestContext,
    cancel_on_disconnect,
    held_body,
    read_context,
    run_if_large,
)
from workers.serve.api.inputs import (
    ModalityRows,
    embed_parts,
    encoded,
    features_by_modality,
    features_of,
)
from workers.serve.api.openapi import BODY, BYTES, json_body, operation, query_parameters
from workers.serve.api.wire.binary import DTYPE, dtype_of
from workers.serve.api.wire.formats import (
    ARROW,
    JSON,
    RAW,
    answer_bytes,
    binary_rows,
    content_type_of,
    json_embeddings,
    vectors_response,
)
from workers.serve.api.wire.json_scan import PlainRequest, check_lengths, read_plain, scan
from workers.serve.api.wire.requests import (
    EmbeddingOptions,
    EmbeddingRequest,
    parse_parameters,
    validated,
)
from workers.serve.api.wire.responses import EmbeddingResponse
from workers.serve.api.wire.rows import (
    check_count,
    feature_label,
    from_array,
    from_lists,
    width_of,
)
from workers.serve.errors import InvalidRequest, shortened
from workers.serve.metrics import StageTimer
from workers.serve.versions.loading import Float32Array, ServedVersion
from workers.serve.versions.lookup import Chosen, parse_reference

_TEXT = "text"
_LOOKED_AT = 64
_Rows = Sequence[Sequence[float]] | NDArray[np.float64]
PATH = "/v1/embeddings"


def router(replica: Replica) -> APIRouter:
    """Return the route with its description."""
    made = APIRouter(tags=["embeddings"])
    described = operation(
        "create_embeddings",
        EmbeddingResponse,
        BODY | {415},
        body={**json_body(EmbeddingRequest), RAW: BYTES, ARROW: BYTES},
        parameters=[*ROUTED, *query_parameters(_BinaryOptions, "where the body is no JSON")],
        success={"headers": ANSWERED_CHANNEL, "content": {RAW: BYTES, ARROW: BYTES}},
    )
    made.post(PATH, **described)(_Embeddings(replica).answer)
    return made


def handler(replica: Replica) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler for `app.FastPath`, past FastAPI's layers; the route serves the description."""
    return _Embeddings(replica).answer


@dataclass(frozen=True)
class _Query:
    """A body that was read, but for its rows, whose width depends on the version.

    `given`: makes rows of a body that is features alone; or the body, where it may be anything.
    """

    options: EmbeddingOptions
    bytes: int
    given: Callable[[ServedVersion], ModalityRows] | EmbeddingRequest


class _BinaryOptions(EmbeddingOptions):
    """The options of JSON as query parameters, and the type of the numbers."""

    dtype: str | None = DTYPE


class _Embeddings:
    """Reads, looks up, embeds, writes; one version for all rows."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def answer(self, request: Request) -> Response:
        """Embed features, texts or files, with one version.

        JSON as OpenAI's clients send it; or rows as raw floats (`application/octet-stream`) or
        Arrow, `dtype` and all other fields as parameters. `Accept` asks for the answer in either of
        these forms.
        """
        replica, timer = self._replica, StageTimer(self._replica.metrics)
        context = read_context(request, replica)
        body = await held_body(request, replica, context.tenant)
        async with cancel_on_disconnect(request, context):
            most = replica.args.max_rows
            query = await run_if_large(
                replica, context.tenant, len(body), _read, request, body, most
            )
            timer.stage("read")
            chosen = await self._choose(query, context)
            timer.stage("look_up")
            parts, embeddings_BE = await self._embedded(
                request, query, chosen.version, context, timer
            )
            tenant, size = context.tenant, embeddings_BE.nbytes
            response = await run_if_large(
                replica, tenant, size, _response, request, query, chosen, embeddings_BE
            )
            timer.stage("write")
        replica.metrics.answered(chosen.version.model, len(embeddings_BE), timer.seconds)
        replica.canaries.answered(chosen.version, features_by_modality(parts))
        return response

    async def _choose(self, query: _Query, context: RequestContext) -> Chosen:
        routing = context.routing or query.options.user
        wanted = parse_reference(query.options.model)
        return await self._replica.lookup.find(wanted, context.min_version, context.caller, routing)

    async def _embedded(
        self,
        request: Request,
        query: _Query,
        version: ServedVersion,
        context: RequestContext,
        timer: StageTimer,
    ) -> tuple[list[ModalityRows], Float32Array]:
        """Return features and embeddings. Rows count from before they are encoded."""
        _check_dimensions(query.options, version)
        given = query.given
        if isinstance(given, EmbeddingRequest):
            read: EmbeddingRequest | ModalityRows = given
        else:
            read = await run_if_large(self._replica, context.tenant, query.bytes, given, version)
        rows = read.count if isinstance(read, EmbeddingRequest) else len(read.rows_BF)
        check_count(rows, self._replica.args.max_rows)
        admission = self._replica.admission
        hold_until_sent(request, admission.rows, context.tenant, rows)
        size = answer_bytes(request, rows * version.spec.width, query.options.encoding_format)
        hold_answer(request, admission.bytes, context.tenant, size)
        parts = (
            [read]
            if isinstance(read, ModalityRows)
            else await self._from_json(read, version, context.tenant)
        )
        timer.stage("encode")
        embeddings_BE = await embed_parts(
            *(self._replica, version, parts),
            normalize=query.options.normalize,
            ticket=context.ticket,
        )
        timer.stage("embed")
        return parts, embeddings_BE

    async def _from_json(
        self, body: EmbeddingRequest, version: ServedVersion, tenant: str
    ) -> list[ModalityRows]:
        if body.items is not None:
            _check_unnamed(body)
            return await features_of(self._replica, version, body.items, tenant=tenant)
        if body.texts is not None:
            modality = body.modality or _TEXT
            rows_BF = await encoded(self._replica, version, modality, body.texts, tenant=tenant)
            return [_whole(modality, rows_BF)]
        modality = _stated(body.modality, body.rows)
        width = width_of(modality, version.spec)
        return [_whole(modality, from_lists(body.rows, feature_label(modality), width))]


def _check_unnamed(body: EmbeddingRequest) -> None:
    if body.modality is not None:
        raise InvalidRequest(
            f"modality is {shortened(body.modality)}, but each item has its own; leave one out",
            "modality",
        )


def _stated(modality: str | None, rows: _Rows | None = None) -> str:
    """Return the modality of features. `rows`: checked for token ids, where none is stated."""
    if modality is not None:
        return modality
    if rows is not None and _look_like_tokens(rows):
        raise InvalidRequest(
            "the field 'modality' is missing, and the input looks like token ids: send texts "
            "(LangChain: check_embedding_ctx_length=False); or, if these are features, name their "
            "modality",
            "modality",
            "token_ids",
        )
    raise InvalidRequest("the field 'modality' is missing; features need one", "modality")


def _look_like_tokens(rows: _Rows) -> bool:
    """Whether rows look like tokens, which OpenAI's API takes and some clients send by default."""
    first = rows[0][:_LOOKED_AT] if len(rows) else ()
    return len(first) > 0 and all(each >= 0 and float(each).is_integer() for each in first)


def _whole(modality: str, rows_BF: Float32Array) -> ModalityRows:
    return ModalityRows(modality, rows_BF, np.arange(len(rows_BF)))


def _check_dimensions(options: EmbeddingOptions, version: ServedVersion) -> None:
    if options.dimensions not in (None, version.spec.width):
        raise InvalidRequest(
            f"dimensions is {shortened(options.dimensions)}; {version.label} has "
            f"{version.spec.width}",
            "dimensions",
        )


def _read(request: Request, body: bytes, most: int) -> _Query:
    """Read the body by its Content-Type. Raises InvalidRequest, UnsupportedMedia."""
    form = content_type_of(request)
    if form != JSON:
        return _read_binary(request, body, form, most)
    scanned = scan(body)
    plain = read_plain(scanned, EmbeddingOptions)
    if plain is not None:
        return _Query(plain.options, len(body), lambda version: _plain_rows(plain, version))
    check_lengths(body, most, scanned)
    del scanned  # Its document may take more memory than the body.
    read = validated(EmbeddingRequest, body)
    return _Query(read, len(body), read)


def _plain_rows(plain: PlainRequest[EmbeddingOptions], version: ServedVersion) -> ModalityRows:
    modality = _stated(plain.options.modality, plain.rows_BF)
    width = width_of(modality, version.spec)
    return _whole(modality, from_array(plain.rows_BF, feature_label(modality), width))


def _read_binary(request: Request, body: bytes, form: str, most: int) -> _Query:
    _check_flag(request.query_params.get("normalize"))
    options = parse_parameters(_BinaryOptions, dict(request.query_params))
    modality = _stated(options.modality)
    dtype = dtype_of(options.dtype)

    def rows_for(version: ServedVersion) -> ModalityRows:
        width = width_of(modality, version.spec)
        return _whole(
            modality, binary_rows(form, body, dtype, feature_label(modality), width, most)
        )

    return _Query(options, len(body), rows_for)


def _check_flag(text: str | None) -> None:
    """Refuse `yes` and `1`, which the parser would take."""
    if text not in (None, "true", "false"):
        raise InvalidRequest(
            f"normalize is {shortened(text)}; permitted are true and false", "normalize"
        )


def _response(
    request: Request, query: _Query, chosen: Chosen, embeddings_BE: Float32Array
) -> Response:
    version = chosen.version
    headers = {"x-model-version": str(version.number), "x-model-channel": chosen.channel}
    encoding = query.options.encoding_format
    return vectors_response(
        *(request, embeddings_BE, headers),
        lambda: json_embeddings(version.label, embeddings_BE, encoding),
    )
