"""`POST /v1/embeddings`: the main path of the endpoint.

Shapes: B rows, E width of the embeddings, D numbers of them that are wanted.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from cmcl.contract.api.endpoint import EmbeddingResponse
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
    trace_of,
    within_deadline,
)
from workers.serve.api.inputs import (
    checked_dimensions,
    checked_items,
    embed_parts,
    encoded,
    features_of,
)
from workers.serve.api.openapi import BODY, BYTES, json_body, operation, query_parameters
from workers.serve.api.wire.requests import (
    EmbeddingOptions,
    EmbeddingRequest,
    ModalityRows,
    PlainRequest,
    check_bounds,
    parse_parameters,
    read_plain,
    scan,
    validated,
)
from workers.serve.api.wire.vectors import (
    ARROW,
    DTYPE,
    JSON,
    RAW,
    Rows,
    answer_bytes,
    binary_rows,
    check_count,
    content_type_of,
    dtype_of,
    feature_label,
    from_array,
    from_lists,
    json_embeddings,
    look_like_tokens,
    vectors_response,
    width_of,
)
from workers.serve.background import Steps
from workers.serve.errors import InvalidRequest, shortened
from workers.serve.telemetry import StageTimer
from workers.serve.versions.live import parse_reference
from workers.serve.versions.loading import Float32Array, ServedVersion, truncated

_TEXT = "text"
# What clients must receive so that they do not tokenize texts.
_TOKENS = (
    "the input looks like token ids: send texts (LangChain: check_embedding_ctx_length=False; other clients: "
    "without an own tokenizer)"
)
# Queries that are kept parsed, and the largest of them in bytes.
_QUERIES = 256
_SHORT_QUERY = 512
PATH = "/v1/embeddings"


def router(replica: Replica) -> APIRouter:
    made = APIRouter(tags=["embeddings"])
    described = operation(
        "create_embeddings",
        EmbeddingResponse,
        BODY | {409, 415},
        body={**json_body(EmbeddingRequest), RAW: BYTES, ARROW: BYTES},
        parameters=[*ASKED_VERSION, *query_parameters(_BinaryOptions, "where the body is no JSON")],
        success={"headers": ANSWERED_VERSION, "content": {RAW: BYTES, ARROW: BYTES}},
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
    given: Callable[[ServedVersion], list[ModalityRows]] | EmbeddingRequest


class _BinaryOptions(EmbeddingOptions):
    """The options of JSON as query parameters, and the type of the numbers."""

    dtype: str | None = DTYPE


class _Embeddings:
    """Reads, looks up, embeds, writes; one version for all rows."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def answer(self, request: Request) -> Response:
        """Embed features or raw items (texts, files, numbers), with one version.

        JSON as OpenAI's clients send it; or rows as raw floats (`application/octet-stream`) or
        Arrow, `dtype` and all other fields as parameters. `Accept` asks for the answer in either of
        these forms.
        """
        replica = self._replica
        timer = StageTimer(replica.metrics, trace_of(request, replica))
        context = read_context(request, replica)
        body = await held_body(request, replica, context.owner)
        async with within_deadline(context):
            most = replica.args.max_rows
            query = await run_if_large(
                replica, context.owner, len(body), _read, request, body, most
            )
            timer.stage("read")
            version = await replica.lookup.find(
                parse_reference(query.options.model), context.min_version, context.caller
            )
            timer.stage("look_up")
            embeddings_BE = await self._embedded(request, query, version, context, timer)
            owner, size = context.owner, embeddings_BE.nbytes
            response = await run_steps_if_large(
                replica, owner, size, _response(request, query, version, embeddings_BE)
            )
            timer.stage("write")
        replica.metrics.answered(version.model, len(embeddings_BE), timer.seconds)
        return response

    async def _embedded(
        self,
        request: Request,
        query: _Query,
        version: ServedVersion,
        context: RequestContext,
        timer: StageTimer,
    ) -> Float32Array:
        """Return the embeddings. Rows count from before they are encoded."""
        dimensions = checked_dimensions(query.options.dimensions, version)
        given = query.given
        if isinstance(given, EmbeddingRequest):
            read: EmbeddingRequest | list[ModalityRows] = given
            rows = given.count
        else:
            read = await run_if_large(self._replica, context.owner, query.bytes, given, version)
            rows = sum(len(part.rows_BF) for part in read)
        check_count(rows, self._replica.args.max_rows)
        admission = self._replica.admission
        hold_until_sent(request, admission.rows, context.owner, rows)
        size = answer_bytes(request, rows * dimensions, query.options.encoding_format)
        hold_answer(request, admission.bytes, context.owner, size)
        parts = (
            read if isinstance(read, list) else await self._from_json(read, version, context.owner)
        )
        timer.stage("encode")
        embeddings_BE = await embed_parts(
            self._replica,
            version,
            parts,
            normalize=query.options.normalize,
            ticket=context.ticket,
        )
        timer.stage("embed")
        return truncated(embeddings_BE, dimensions, normalize=query.options.normalize)

    async def _from_json(
        self, body: EmbeddingRequest, version: ServedVersion, owner: str
    ) -> list[ModalityRows]:
        if body.items is not None:
            if (named := body.modality) is not None:
                reason = "but each item has its own; leave one out"
                raise InvalidRequest(f"modality is {shortened(named)}, {reason}", "modality")
            return await features_of(self._replica, version, body.items, owner=owner)
        if body.texts is not None:
            modality = body.modality or _TEXT
            rows_BF = await encoded(self._replica, version, modality, body.texts, owner=owner)
            return [_whole(modality, rows_BF)]
        modality = _stated(body.modality, body.rows)
        width = width_of(modality, version)
        _check_no_tokens(modality, version, body.rows)
        return [_whole(modality, from_lists(body.rows, feature_label(modality), width))]


def _stated(modality: str | None, rows: Rows | None = None) -> str:
    """Return the modality of features. `rows`: checked for token ids, where none is stated."""
    if modality is not None:
        return modality
    if rows is not None and look_like_tokens(rows):
        raise InvalidRequest(
            f"the field 'modality' is missing, and {_TOKENS}; or, if these are features, name their modality",
            "modality",
            "token_ids",
        )
    raise InvalidRequest("the field 'modality' is missing; features need one", "modality")


def _check_no_tokens(modality: str, version: ServedVersion, rows: Rows) -> None:
    """Raises InvalidRequest for whole numbers alone, where the modality has an encoder.

    Clients that tokenize texts themselves would get embeddings of their token ids wherever these are as many as a feature
    has numbers. Features of encoders are not whole numbers; items and raw floats are never token ids.
    """
    if version.spec.modalities[modality].encoder is not None and look_like_tokens(rows):
        raise InvalidRequest(
            f"modality {modality!r} is bound to an encoder, and {_TOKENS}; or, if these are features of whole numbers, "
            'send each as {"modality": ..., "feature": [...]}, or raw floats',
            "input",
            "token_ids",
        )


def _whole(modality: str, rows_BF: Float32Array) -> ModalityRows:
    return ModalityRows(modality, rows_BF, np.arange(len(rows_BF)))


def _read(request: Request, body: bytes, most: int) -> _Query:
    """Read the body by its Content-Type. Raises InvalidRequest, UnsupportedMedia."""
    form = content_type_of(request)
    if form != JSON:
        return _read_binary(request, body, form, most)
    scanned = scan(body)
    plain = read_plain(scanned)
    if plain is not None:
        return _Query(plain.options, len(body), lambda version: _plain_parts(plain, version))
    check_bounds(EmbeddingRequest, body, most, scanned=scanned)
    del scanned  # Its document may take more memory than the body.
    read = validated(EmbeddingRequest, body)
    return _Query(read, len(body), read)


def _plain_parts(plain: PlainRequest, version: ServedVersion) -> list[ModalityRows]:
    if isinstance(plain.features, list):
        return checked_items(plain.features, version)
    modality = _stated(plain.options.modality, plain.features)
    width = width_of(modality, version)
    _check_no_tokens(modality, version, plain.features)
    return [_whole(modality, from_array(plain.features, feature_label(modality), width))]


def _read_binary(request: Request, body: bytes, form: str, most: int) -> _Query:
    options = _binary_options(request)
    modality = _stated(options.modality)
    dtype = dtype_of(options.dtype)

    def rows_for(version: ServedVersion) -> list[ModalityRows]:
        width = width_of(modality, version)
        rows_BF = binary_rows(form, body, dtype, feature_label(modality), width, most)
        return [_whole(modality, rows_BF)]

    return _Query(options, len(body), rows_for)


def _binary_options(request: Request) -> _BinaryOptions:
    """Parse the query parameters. Raises InvalidRequest."""
    query = request.scope["query_string"]
    # Clients repeat their few queries, and parsing one costs a tenth of a request of one row.
    return _cached_options(query) if len(query) <= _SHORT_QUERY else _options_in(query)


def _options_in(query: bytes) -> _BinaryOptions:
    parameters = QueryParams(query)
    _check_flag(parameters.get("normalize"))
    return parse_parameters(_BinaryOptions, dict(parameters))


_cached_options = lru_cache(_QUERIES)(_options_in)


def _check_flag(text: str | None) -> None:
    """Refuse `yes` and `1`, which the parser would take."""
    if text not in (None, "true", "false"):
        raise InvalidRequest(
            f"normalize is {shortened(text)}; permitted are true and false", "normalize"
        )


def _response(
    request: Request, query: _Query, version: ServedVersion, embeddings_BE: Float32Array
) -> Steps[Response]:
    headers = {"x-model-version": str(version.number)}
    encoding = query.options.encoding_format
    return vectors_response(
        request,
        embeddings_BE,
        headers,
        lambda: json_embeddings(version.label, embeddings_BE, encoding),
    )
