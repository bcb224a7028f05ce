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
    a_feature,
    check_count,
    from_array,
    from_lists,
    width_of,
)
from workers.serve.errors import InvalidRequest
from workers.serve.metrics import StageTimer
from workers.serve.versions.loading import Float32Array, ServedVersion
from workers.serve.versions.lookup import Chosen, parse_reference, shortened

_TEXT = "text"
_LOOKED_AT = 64
_Rows = Sequence[Sequence[float]] | NDArray[np.float64]
PATH = "/v1/embeddings"


def router(replica: Replica) -> APIRouter:
    """The route of this replica, as it is described."""
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
    """The same without FastAPI's layers (`app.FastPath`); its route is there for the description."""
    return _Embeddings(replica).answer


@dataclass(frozen=True)
class _Query:
    """A body that was read. Its rows wait for a version that knows how wide they must be.

    `given`: how to make rows of a body that is features alone; or the body, where it may be anything.
    """

    options: EmbeddingOptions
    bytes: int
    given: Callable[[ServedVersion], ModalityRows] | EmbeddingRequest


class _BinaryOptions(EmbeddingOptions):
    """The same as in JSON, in the address, and what the bytes are."""

    dtype: str | None = DTYPE


class _Embeddings:
    """Reads, looks up, embeds, writes; one version from the first row to the last."""

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
        """Features and embeddings. Rows count from before an encoder gets to see them."""
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
        return [_whole(modality, from_lists(body.rows, a_feature(modality), width))]


def _check_unnamed(body: EmbeddingRequest) -> None:
    if body.modality is not None:
        raise InvalidRequest(
            f"modality is {shortened(body.modality)}, and each item names its own; leave one out",
            "modality",
        )


def _stated(modality: str | None, rows: _Rows | None = None) -> str:
    """The modality of features. `rows`: what may be token ids, where none is stated."""
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
    """OpenAI's API takes tokens in place of texts, and some clients send them by default."""
    first = rows[0][:_LOOKED_AT] if len(rows) else ()
    return len(first) > 0 and all(each >= 0 and float(each).is_integer() for each in first)


def _whole(modality: str, rows_BF: Float32Array) -> ModalityRows:
    return ModalityRows(modality, rows_BF, np.arange(len(rows_BF)))


def _check_dimensions(options: EmbeddingOptions, version: ServedVersion) -> None:
    if options.dimensions not in (None, version.spec.width):
        raise InvalidRequest(
            f"dimensions is {shortened(options.dimensions)}; {version.label} declares "
            f"{version.spec.width} alone",
            "dimensions",
        )


def _read(request: Request, body: bytes, most: int) -> _Query:
    """By Content-Type. Raises InvalidRequest, UnsupportedMedia."""
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
    return _whole(modality, from_array(plain.rows_BF, a_feature(modality), width))


def _read_binary(request: Request, body: bytes, form: str, most: int) -> _Query:
    _check_flag(request.query_params.get("normalize"))
    options = parse_parameters(_BinaryOptions, dict(request.query_params))
    modality = _stated(options.modality)
    dtype = dtype_of(options.dtype)

    def rows_for(version: ServedVersion) -> ModalityRows:
        width = width_of(modality, version.spec)
        return _whole(modality, binary_rows(form, body, dtype, a_feature(modality), width, most))

    return _Query(options, len(body), rows_for)


def _check_flag(text: str | None) -> None:
    """The parser would take `yes` and `1` as well, which JSON does not."""
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
