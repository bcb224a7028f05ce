"""A vector store of LangChain over a collection of cmcl: the vectors follow the model, and need no re-indexing.

The collection's model must have a modality that is bound to an encoder of texts. Copy this file into your program; it
needs langchain-core and the client of cmcl.

    with Client(embeddings_url="http://127.0.0.1:8001") as client:
        store = CollectionStore(client, "documents")
        store.add_texts(["a red chair", "a blue table"], [{"page": 1}, {"page": 2}])
        retriever = store.as_retriever(search_kwargs={"k": 3})
        retriever.invoke("furniture")
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from cmcl import Client, Item, Query

_TEXT = "text"


class CollectionStore(VectorStore):
    """Documents in a collection. A document's text and metadata are the payload of its item.

    `modality`: of the documents and the queries. `among`: modalities that are searched, by default that one. Items
    of other modalities, such as pictures, are documents with an empty text.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        modality: str = _TEXT,
        among: Sequence[str] | None = None,
    ) -> None:
        self._client = client
        self._collection = collection
        self._modality = modality
        self._among = list(among or [modality])
        # Of the last write, so that a search finds what was written before.
        self._revision = 0

    @property
    def embeddings(self) -> Embeddings | None:
        """None: the endpoint embeds texts."""
        return None

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **_: Any,
    ) -> list[str]:
        """Add texts, and replace those with the same ids; returns the ids."""
        given = list(texts)
        names = ids or [str(uuid.uuid4()) for _ in given]
        about = metadatas or [{} for _ in given]
        items = [
            Item(name, self._modality, text=text, payload={**metadata, _TEXT: text})
            for name, text, metadata in zip(names, given, about, strict=True)
        ]
        if items:
            self._revision = self._client.add_items(self._collection, items).revision
        return names

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool | None:
        """Remove documents by id; a missing one is not an error."""
        if ids:
            self._revision = self._client.remove_items(self._collection, ids).revision
        return True

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,  # noqa: A002 - as other stores call it
        **_: Any,
    ) -> list[tuple[Document, float]]:
        """Documents with their cosines, best first. `filter`: as in docs/search.md."""
        found = self._client.search(
            self._collection,
            Query(self._modality, text=query),
            k,
            modalities=self._among,
            filter=filter,
            min_revision=self._revision,
        )
        return [(_document(hit.id, hit.payload), hit.score) for hit in found.data]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Documents, best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,  # noqa: ARG003 - of the port
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> "CollectionStore":
        """Make a store from texts; `kwargs` are those of the class. `embedding` is not used: the endpoint embeds."""
        store = cls(**kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store


def _document(name: str, payload: Mapping[str, Any] | None) -> Document:
    metadata = dict(payload or {})
    return Document(id=name, page_content=str(metadata.pop(_TEXT, "")), metadata=metadata)
