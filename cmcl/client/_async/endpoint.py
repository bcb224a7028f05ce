"""The embeddings endpoint: embeddings, models that it serves, and collections to search."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import httpx

from cmcl.client._async.session import Calls, new_key
from cmcl.client.endpoint import (
    Collection,
    Embeddings,
    Found,
    Item,
    Migrated,
    Query,
    ServedModel,
    Similarity,
    Vectors,
    Written,
    content_of,
    migrated,
    understood,
    vectors_of,
    version_of,
    written_inputs,
)
from cmcl.client.errors import InvalidArgument
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
)

_COLLECTIONS = "/v1/collections"


class EndpointCalls(Calls):
    """Calls of the embeddings endpoint."""

    async def embed(
        self, model: str, modality: str, inputs: Vectors | Sequence[str] | str
    ) -> Embeddings:
        """Embed features or texts with the live version of `model`, or with that of `name@version`.

        `inputs`: features (rows × the modality's width), or texts where the endpoint has an encoder
        for the modality (docs/encoders.md). The answer has a vector for each.
        """
        body = {"model": model, "modality": modality, **written_inputs(inputs)}
        response = await self._ask("POST", "/v1/embeddings", body)
        return understood(
            response, lambda answer: Embeddings(vectors_of(answer), version_of(answer))
        )

    async def migrate(
        self,
        model: str,
        modality: str,
        vectors: Vectors,
        from_version: int,
        most_error: float = 0.5,
    ) -> Migrated:
        """Turn vectors that one version stored into those of the live version, or of `name@version`.

        Refused (422) where the error would exceed `most_error`, from 0 to 1.
        """
        name, _, to_version = model.partition("@")
        body = {
            "model": name,
            "modality": modality,
            "from_version": from_version,
            "to_version": int(to_version) if to_version.isdecimal() else to_version or None,
            "most_error": most_error,
            **written_inputs(vectors),
        }
        return understood(await self._ask("POST", "/v1/migrate", body), migrated)

    async def similarity(
        self,
        model: str,
        queries: Sequence[Query],
        candidates: Sequence[Query],
        top_k: int | None = None,
    ) -> Similarity:
        """Score every query against every candidate; with `top_k`, only each query's best candidates.

        Queries and candidates may be of any modalities of the model. One version embeds all of them:
        the live one of `model`, or that of `name@version`.
        """
        body = {
            "model": model,
            "queries": [content_of(each) for each in queries],
            "candidates": [content_of(each) for each in candidates],
            "top_k": top_k,
        }
        response = await self._ask("POST", "/v1/similarity", body)
        return read(Similarity, response, Side.EMBEDDINGS)

    async def served_models(self) -> list[ServedModel]:
        """Models that the endpoint serves: versions, trials, whether stored vectors still fit."""
        response = await self._ask("GET", "/v1/models")
        models = listed(response, "data", Side.EMBEDDINGS)["data"]
        return [validated(ServedModel, each, response) for each in models]

    async def served_model(self, model: str) -> ServedModel:
        """One of them, by its name or as name@version."""
        response = await self._ask("GET", f"/v1/models/{segment(model)}")
        return read(ServedModel, response, Side.EMBEDDINGS)

    async def create_collection(
        self, name: str, model: str, feature_type: str = "float32"
    ) -> Collection:
        """Create a collection that follows `model`; the same properties again return the same one."""
        body = {"model": model, "feature_type": feature_type}
        return read(Collection, await self._ask("PUT", _at(name), body), Side.EMBEDDINGS)

    async def collections(self) -> AsyncIterator[Collection]:
        """All collections, by name."""
        response = await self._ask("GET", _COLLECTIONS)
        for each in listed(response, "data", Side.EMBEDDINGS)["data"]:
            yield validated(Collection, each, response)

    async def collection(self, name: str) -> Collection:
        """One collection: what is stored, and what the replica that answers searches."""
        return read(Collection, await self._ask("GET", _at(name)), Side.EMBEDDINGS)

    async def delete_collection(self, name: str) -> None:
        """Delete a collection with all its items."""
        await self._ask("DELETE", _at(name), headers=_once())

    async def add_items(self, name: str, items: Iterable[Item], at_once: int = 1000) -> Written:
        """Add items; existing ones with the same ids are replaced.

        `at_once` items make one change, which is searched as a whole; the answer is that of the last.
        """
        return await self._in_pieces(f"{_at(name)}/items", "items", map(_item, items), at_once)

    async def remove_items(self, name: str, ids: Iterable[str], at_once: int = 1000) -> Written:
        """Remove items; an id that does not exist is no error."""
        return await self._in_pieces(f"{_at(name)}/items/delete", "ids", ids, at_once)

    async def search(  # noqa: PLR0913 - the options of a search
        self,
        name: str,
        query: Query,
        top_k: int = 10,
        *,
        modalities: Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - as the endpoint calls it
        exact: bool = False,
        min_revision: int = 0,
        min_version: int = 0,
    ) -> Found:
        """The items of any modality that are nearest to the query, by the live version.

        `filter`: over payloads, docs/search.md has the language. `min_revision`: wait until this
        change is searched, for example that of `add_items`; `min_version`: until this version answers.
        """
        body: dict[str, Any] = {
            "query": content_of(query),
            "top_k": top_k,
            "exact": exact,
            "modalities": None if modalities is None else list(modalities),
            "filter": None if filter is None else dict(filter),
        }
        least = {"x-min-collection-revision": min_revision, "x-min-model-version": min_version}
        headers = {header: str(value) for header, value in least.items() if value}
        response = await self._ask("POST", f"{_at(name)}/search", body, headers)
        return read(Found, response, Side.EMBEDDINGS)

    async def export_collection(self, name: str, form: str, table: str | None = None) -> bytes:
        """All items with their vectors, for another store; in memory, so not for millions.

        `form`: qdrant (JSON lines of points), pgvector (CSV for COPY) or pgvector-ddl (its table).
        """
        params = given(format=form, table=table)
        return (await self._ask("GET", f"{_at(name)}/export", params=params)).content

    async def _in_pieces(
        self, path: str, field: str, entries: Iterable[object], at_once: int
    ) -> Written:
        left, written = iter(entries), None
        while piece := list(islice(left, at_once)):
            response = await self._ask("POST", path, {field: piece}, _once())
            written = read(Written, response, Side.EMBEDDINGS)
        if written is None:
            raise InvalidArgument(f"there are no {field}; at least one is needed")
        return written

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Params | None = None,
    ) -> httpx.Response:
        """Values of the body that are None are left out."""
        if body is not None:
            body = {name: value for name, value in body.items() if value is not None}
        request = Request(
            method,
            path,
            Side.EMBEDDINGS,
            params=params or {},
            headers={**content_type(body), **(headers or {})},
            content=json_bytes(body),
        )
        return await self._session.send(request)


def _once() -> dict[str, str]:
    """With this, a write that is sent again is done once."""
    return {"idempotency-key": new_key()}


def _at(name: str) -> str:
    return f"{_COLLECTIONS}/{segment(name)}"


def _item(item: Item) -> dict[str, Any]:
    payload = {} if item.payload is None else {"payload": dict(item.payload)}
    return {"id": item.id, **content_of(item), **payload}
