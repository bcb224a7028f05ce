"""`POST /v1/embeddings`: the main path of the endpoint.

Shapes: B rows, E width of the embeddings, D numbers of them that are wanted.
"""

from collections.abc import Awaitable, Callable, Sequence
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
    within_deadline,
)
from workers.serve.api.inputs import (
    ModalityRows,
    checked_dimensions,
    embed_parts,
    encoded,
    features_of,
)
from workers.serve.api.openapi import BODY, BYTES, json_body, operation, query_parameters
from workers.serve.api.wire.requests import (
    EmbeddingOptions,
    EmbeddingRequest,
    Item,
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
    content_type_of,
    feature_label,
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

    `given`: makes rows of a body that is features alone; or its texts, or its items.
    """

    options: EmbeddingOptions
    bytes: int
    given: Callable[[ServedVersion], Float32Array] | list[str] | list[Item]


class _BinaryOptions(EmbeddingOptions, kw_only=True):
    """The options of JSON as query parameters, and the type of the numbers."""

    dtype: Dtype = "float32"


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
        timer = StageTimer(replica.metrics)
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
        given: Float32Array | list[str] | list[Item]
        if isinstance(query.given, list):
            given = query.given
        else:
            given = await run_if_large(
                self._replica, context.owner, query.bytes, query.given, version
            )
        rows = len(given)
        admission = self._replica.admission
        hold_until_sent(request, admission.rows, context.owner, rows)
        size = answer_bytes(request, rows * dimensions, query.options.encoding_format)
        hold_answer(request, admission.bytes, context.owner, size)
        parts = await self._parts(query.options.modality, given, version, context.owner)
        timer.stage("encode")
        embeddings_BE = await embed_parts(
            self._replica,
            version,
            parts,
            normalize=query.options.normalize,
            ticket=context.ticket,
        )
        timer.stage("embed")
        assert embeddings_BE.shape == (rows, version.spec.width), "not one embedding for each row"
        return truncated(embeddings_BE, dimensions, normalize=query.options.normalize)

    async def _parts(
        self,
        modality: str | None,
        given: Float32Array | list[str] | list[Item],
        version: ServedVersion,
        owner: str,
    ) -> list[ModalityRows]:
        if not isinstance(given, np.ndarray):
            if isinstance(given[0], Item):
                if modality is not None:
                    reason = "but each item has its own; leave one out"
                    raise InvalidRequest(f"modality is {shortened(modality)}, {reason}", "modality")
                return await features_of(self._replica, version, given, owner=owner)
            modality = modality or _TEXT
            given = await encoded(self._replica, version, modality, given, owner=owner)
        return [ModalityRows(modality or "", given, np.arange(len(given)))]


def _stated(modality: str | None, rows: Sequence[Sequence[float]] = ()) -> str:
    """Return the modality of features. `rows`: checked for token ids, where none is stated."""
    if modality is not None:
        return modality
    if rows and look_like_tokens(rows):
        raise InvalidRequest(
            f"the field 'modality' is missing, and {_TOKENS}; or, if these are features, name their modality",
            "modality",
            "token_ids",
        )
    raise InvalidRequest("the field 'modality' is missing; features need one", "modality")


def _check_no_tokens(
    modality: str, version: ServedVersion, rows: Sequence[Sequence[float]]
) -> None:
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


def _read(request: Request, body: bytes, most: int) -> _Query:
    """Read the body by its Content-Type. Raises InvalidRequest, UnsupportedMedia."""
    form = content_type_of(request)
    if form != JSON:
        return _read_binary(request, body, form, most)
    read = parse(EmbeddingRequest, body)
    entries = entries_of(read.input)
    check_count(len(entries), most)
    if not isinstance(entries[0], list):
        return _Query(read, len(body), entries)

    def rows_for(version: ServedVersion) -> Float32Array:
        modality = _stated(read.modality, entries)
        width = width_of(modality, version)
        _check_no_tokens(modality, version, entries)
        return from_lists(entries, feature_label(modality), width)

    return _Query(read, len(body), rows_for)


def _read_binary(request: Request, body: bytes, form: str, most: int) -> _Query:
    options = _binary_options(request)
    modality = _stated(options.modality)

    def rows_for(version: ServedVersion) -> Float32Array:
        width = width_of(modality, version)
        return binary_rows(form, body, options.dtype, feature_label(modality), width, most)

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
