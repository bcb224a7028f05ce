# Generated from cmcl/client/_async/endpoint.py by `make docs`; edit that file.
"""Calls of the embeddings endpoint: embeddings, served models, collections."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from cmcl.client._sync.session import Calls, Session, new_key
from cmcl.client.concurrency import call
from cmcl.client.endpoint import (
    ENCODER_TIMEOUT,
    Embeddings,
    Inputs,
    Item,
    MigratedEmbeddings,
    Query,
    RawBatchSize,
    Vectors,
    batches_of,
    body_of,
    embedded,
    encode_content,
    encode_inputs,
    migrated,
    parse_response,
)
from cmcl.client.errors import CmclError, InvalidArgument
from cmcl.client.exports import check_new_folder, unpack
from cmcl.client.wire import (
    Params,
    Request,
    Side,
    content_type,
    given,
    json_bytes,
    listed,
    read,
    segment,
    validated,
    without_none,
)
from cmcl.contract.api.endpoint import (
    Collection,
    FloatType,
    SearchResults,
    ServedModel,
    StoredItem,
    VectorType,
    WriteResult,
)

_COLLECTIONS = "/v1/collections"
# Items of one page.
_LISTED = 200


class EndpointCalls(Calls):
    """Calls of the embeddings endpoint."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._raw_size = RawBatchSize()

    def embed(
        self,
        model: str,
        modality: str,
        inputs: Inputs,
        dimensions: int | None = None,
        *,
        min_version: int = 0,
    ) -> Embeddings:
        """Embed features or texts with the live version of `model`, or with a version `name@version`.

        `inputs` are features (rows × width of the modality). If the modality is bound to an encoder, they
        may be texts, or raw items as `Query` with text, data or numbers. The result has one vector per
        input, of the model's width or of fewer `dimensions` (policy improve): the first ones, at unit
        length. `min_version` waits for a version, at the endpoint.

        Many raw items are sent in several requests, which one version answers. Those that the encoder does not
        finish in time are sent again, fewer at once.
        """
        fields = encode_inputs(modality, inputs)
        if dimensions is not None:
            fields["dimensions"] = dimensions
        headers = {"x-min-model-version": str(min_version)} if min_version else None
        entries = fields.pop("input")
        asked, answers = model, list[Embeddings]()
        batches = batches_of(entries, len(entries), self._raw_size) if entries else [[]]
        for batch in batches:
            parts = [batch]
            while parts:
                body = body_of("input", parts[0], model=asked, **fields)
                response = self._send_first(parts, "/v1/embeddings", body, headers)
                if response is not None:
                    answers.append(parse_response(response, embedded))
                    asked = f"{model.partition('@')[0]}@{answers[0].version}"
        return Embeddings([row for each in answers for row in each.vectors], answers[0].version)

    def migrate(
        self,
        model: str,
        modality: str,
        vectors: Vectors,
        from_version: int,
        most_error: float = 0.5,
    ) -> MigratedEmbeddings:
        """Map vectors of `from_version` to the live version, or to a version `name@version`.

        Fails with status 422 if the relative error would exceed `most_error` (0 to 1).
        """
        name, _, to_version = model.partition("@")
        body = {
            "model": name,
            "from_version": from_version,
            "to_version": int(to_version) if to_version.isdecimal() else to_version or None,
            "most_error": most_error,
            **encode_inputs(modality, vectors),
        }
        return parse_response(self._request("POST", "/v1/migrate", body), migrated)

    def served_models(self) -> list[ServedModel]:
        """Return the models that the endpoint serves, with versions and vector compatibility."""
        response = self._request("GET", "/v1/models")
        models = listed(response, "data", Side.EMBEDDINGS)["data"]
        return [validated(ServedModel, each, response) for each in models]

    def served_model(self, model: str) -> ServedModel:
        """Return a served model, by name or as name@version."""
        response = self._request("GET", f"/v1/models/{segment(model)}")
        return read(ServedModel, response, Side.EMBEDDINGS)

    def export_version(
        self,
        model: str,
        form: str,
        folder: Path,
        encoders: Mapping[str, Path] | None = None,
        *,
        with_moments: bool = False,
    ) -> None:
        """Export the live version of `model`, or a version `name@version`, to a new folder.

        `form`: sentence-transformers, safetensors, onnx or mlflow (docs/export.md). `encoders`: by modality the
        folder of the sentence-transformers model to put in front of its head; it must be the encoder whose
        features the version has learned. `with_moments`: also the means and second moments of its datasets, which
        reveal more of them than heads do (docs/security.md); with form safetensors, and with the operator's key.
        The export is held in memory until it is written.
        """
        check_new_folder(folder)
        path = f"/v1/models/{segment(model)}/export"
        params = given(format=form, moments="true" if with_moments else None)
        response = self._request("GET", path, params=params)
        call(lambda: unpack(response.content, folder, encoders or {}))

    def create_collection(
        self,
        name: str,
        model: str,
        feature_type: FloatType = "float32",
        *,
        vector_type: VectorType = "float32",
        dimensions: int | None = None,
        text_fields: Sequence[str] = (),
    ) -> Collection:
        """Create a collection that follows `model`. Repeating the call returns the same collection.

        `vector_type`, `dimensions`: how vectors are stored, and how many numbers of each, by default all. `text_fields`: fields of payloads
        that `search` finds by words.
        """
        body = {
            "model": model,
            "feature_type": feature_type,
            "vector_type": vector_type,
            "dimensions": dimensions,
            "text_fields": list(text_fields),
        }
        return read(Collection, self._request("PUT", _path(name), body), Side.EMBEDDINGS)

    def collections(self) -> Iterator[Collection]:
        """Iterate over all collections, by name."""
        response = self._request("GET", _COLLECTIONS)
        for each in listed(response, "data", Side.EMBEDDINGS)["data"]:
            yield validated(Collection, each, response)

    def collection(self, name: str) -> Collection:
        """Return a collection: what is stored, and the search state of the responding replica."""
        return read(Collection, self._request("GET", _path(name)), Side.EMBEDDINGS)

    def delete_collection(self, name: str) -> None:
        """Delete a collection with all its items."""
        self._request("DELETE", _path(name), headers=_idempotency_key())

    def add_items(self, name: str, items: Iterable[Item], batch_size: int = 1000) -> WriteResult:
        """Add items, and replace existing items with the same ids.

        Every `batch_size` items are one atomic change, or fewer where these would have more than 32 MiB, or where the
        encoder would not finish raw items in time; returns the result of the last change.
        """
        batches = batches_of(map(_item, items), batch_size, self._raw_size)
        return self._in_batches(f"{_path(name)}/items", "items", batches)

    def remove_items(self, name: str, ids: Iterable[str], batch_size: int = 1000) -> WriteResult:
        """Remove items. Ids that do not exist are ignored."""
        batches = batches_of(ids, batch_size)
        return self._in_batches(f"{_path(name)}/items/delete", "ids", batches)

    def collection_items(
        self, name: str, modality: str | None = None, include: Sequence[str] = ()
    ) -> Iterator[StoredItem]:
        """Iterate over the items of a collection, or those of a modality, in the order of its index.

        `include`: `source` and `thumbnail` where they are wanted.
        Items that are added or merged during the iteration may be missed or returned twice.
        """
        offset: int | None = 0
        while offset is not None:
            params = given(
                modality=modality,
                include=",".join(include) or None,
                offset=str(offset),
                limit=str(_LISTED),
            )
            response = self._request("GET", f"{_path(name)}/items", params=params)
            page = listed(response, "data", Side.EMBEDDINGS)
            for each in page["data"]:
                yield validated(StoredItem, each, response)
            offset = page.get("next_offset")

    def search(  # noqa: PLR0913 - the options of a search
        self,
        name: str,
        query: Query | None = None,
        top_k: int = 10,
        *,
        words: str | None = None,
        modalities: Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - as the endpoint calls it
        exact: bool = False,
        by_parent: bool = False,
        include: Sequence[str] = (),
        min_revision: int = 0,
        min_version: int = 0,
    ) -> SearchResults:
        """Return the items nearest to the query, those whose payloads have the words, or both rankings fused.

        Give `query`, `words` (for collections with text fields) or both. `modalities` restricts the items. `filter` is a filter over payloads (docs/search.md).
        `exact` compares with every item. `by_parent` returns the best part of each parent. `include`: `source` and `thumbnail` where they are wanted. `min_revision` waits for a change of the collection, for
        example that of `add_items`; `min_version` waits for a version.
        """
        body: dict[str, Any] = {
            "query": None if query is None else encode_content(query),
            "words": words,
            "top_k": top_k,
            "exact": exact,
            "by_parent": by_parent or None,
            "include": list(include) or None,
            "modalities": None if modalities is None else list(modalities),
            "filter": None if filter is None else dict(filter),
        }
        least = {"x-min-collection-revision": min_revision, "x-min-model-version": min_version}
        headers = {header: str(value) for header, value in least.items() if value}
        response = self._request("POST", f"{_path(name)}/search", body, headers)
        return read(SearchResults, response, Side.EMBEDDINGS)

    def export_collection(self, name: str, form: str) -> bytes:
        """Return all items with their vectors, for another vector store. The result is held in memory.

        `form`: parquet, or arrow (a stream of Arrow IPC).
        """
        params = given(format=form)
        return (self._request("GET", f"{_path(name)}/export", params=params)).content

    def _in_batches(self, path: str, field: str, batches: Iterable[list[bytes]]) -> WriteResult:
        written = None
        for batch in batches:
            parts = [batch]
            while parts:
                body = body_of(field, parts[0])
                response = self._send_first(parts, path, body, _idempotency_key())
                if response is not None:
                    written = read(WriteResult, response, Side.EMBEDDINGS)
        if written is None:
            raise InvalidArgument(f"no {field} given; at least one is required")
        return written

    def _send_first(
        self,
        parts: list[list[bytes]],
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response | None:
        """Send the first part, and remove it. Where the encoder does not finish it in time, halve it, and return None."""
        part, began = parts[0], self._session.clock.now()
        # The same items would take as long again.
        not_repeated = frozenset({ENCODER_TIMEOUT} if len(part) > 1 else ())
        try:
            response = self._request("POST", path, body, headers, not_repeated=not_repeated)
        except CmclError as error:
            if not self._raw_size.shrink(error, len(part)):
                raise
            half = len(part) // 2
            parts[:1] = [part[:half], part[half:]]
            return None
        self._raw_size.grow(len(part), self._session.clock.now() - began)
        del parts[0]
        return response

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Params | None = None,
        not_repeated: frozenset[str] = frozenset(),
    ) -> httpx.Response:
        """Send a request. Omits values of the body that are None; bytes are a body in JSON."""
        if isinstance(body, Mapping):
            body = without_none(**body)
        request = Request(
            method,
            path,
            Side.EMBEDDINGS,
            params=params or {},
            headers={**content_type(body), **(headers or {})},
            content=body if isinstance(body, bytes) else json_bytes(body),
            not_repeated=not_repeated,
        )
        return self._session.send(request)


def _idempotency_key() -> dict[str, str]:
    """Return a header that makes a repeated write idempotent."""
    return {"idempotency-key": new_key()}


def _path(name: str) -> str:
    return f"{_COLLECTIONS}/{segment(name)}"


def _item(item: Item) -> dict[str, Any]:
    payload = None if item.payload is None else dict(item.payload)
    small = item.thumbnail
    others = {
        "payload": payload,
        "parent": item.parent,
        "start": item.start,
        "end": item.end,
        "parts": item.parts or None,
        "source": item.source,
        "thumbnail": base64.b64encode(small).decode() if isinstance(small, bytes) else small,
    }
    given_others = {name: value for name, value in others.items() if value is not None}
    return {"id": item.id, **encode_content(item), **given_others}
