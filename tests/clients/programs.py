"""Other people's programs against an endpoint: `python programs.py settings.json`, in an environment without cmcl.

`settings.json`: `url` of the endpoint, `model`, `texts`, and folders of exports. Prints one JSON object: what each
program got, by its name, as rows of numbers, or {"error": ...}.
"""

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# None of these programs may call home.
os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGCHAIN_TRACING_V2": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
}
SETTINGS: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
URL, MODEL, TEXTS = f"{SETTINGS['url']}/v1", SETTINGS["model"], SETTINGS["texts"]


def openai_client() -> Any:
    from openai import OpenAI

    client = OpenAI(base_url=URL, api_key="none", max_retries=0)
    return [each.embedding for each in client.embeddings.create(model=MODEL, input=TEXTS).data]


def openai_async() -> Any:
    from openai import AsyncOpenAI

    async def ask() -> Any:
        async with AsyncOpenAI(base_url=URL, api_key="none", max_retries=0) as client:
            return await client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")

    return [each.embedding for each in asyncio.run(ask()).data]


def langchain() -> Any:
    return _langchain(check_embedding_ctx_length=False).embed_documents(TEXTS)


def langchain_default() -> Any:
    """Sends token ids."""
    return _langchain().embed_documents(TEXTS)


def langchain_default_with_modality() -> Any:
    """Sends token ids, as many as a feature has numbers, and names the modality."""
    model = _langchain(model_kwargs={"extra_body": {"modality": "text"}})
    return model.embed_documents(["four"])


def _langchain(**options: Any) -> Any:
    from langchain_openai import OpenAIEmbeddings

    _byte_tokens()
    return OpenAIEmbeddings(base_url=URL, api_key="none", model=MODEL, max_retries=0, **options)


def _byte_tokens() -> None:
    """A tokenizer for this model: tiktoken would download one, and which one does not matter here."""
    import tiktoken.model
    import tiktoken.registry

    tiktoken.model.MODEL_TO_ENCODING[MODEL] = "bytes"
    tiktoken.registry.ENCODINGS["bytes"] = tiktoken.Encoding(
        "bytes",
        pat_str=r"(?s).",
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={},
    )


def llama_index() -> Any:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    model = OpenAILikeEmbedding(model_name=MODEL, api_base=URL, api_key="none", max_retries=0)
    return model.get_text_embedding_batch(TEXTS)


def haystack() -> Any:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder
    from haystack.utils import Secret

    embedder = OpenAIDocumentEmbedder(
        api_base_url=URL, api_key=Secret.from_token("none"), model=MODEL, progress_bar=False
    )
    found = embedder.run([Document(content=text) for text in TEXTS])
    return [each.embedding for each in found["documents"]]


def litellm() -> Any:
    import litellm

    answer = litellm.embedding(
        model=f"openai/{MODEL}", input=TEXTS, api_base=URL, api_key="none", max_retries=0
    )
    return [each["embedding"] for each in answer.data]


def pydantic_ai() -> Any:
    from pydantic_ai import Embedder
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=URL, api_key="none")
    found = Embedder(OpenAIEmbeddingModel(MODEL, provider=provider)).embed_documents_sync(TEXTS)
    return [list(each) for each in found.embeddings]


def pydantic_ai_agent() -> Any:
    """An agent whose tool searches a vector store. `TestModel` calls each tool once, and no language model."""
    from openai import OpenAI
    from pydantic_ai import Agent
    from pydantic_ai.models.test import TestModel

    passages: list[tuple[str, str]] = []

    def retrieve(question: str) -> list[str]:
        """Return the passages nearest to a question."""
        with OpenAI(base_url=URL, api_key="none", max_retries=0) as client:
            found = client.vector_stores.search("texts", query=question, max_num_results=2).data
        passages.extend((hit.file_id, hit.content[0].text) for hit in found)
        return [hit.content[0].text for hit in found]

    agent = Agent(TestModel(custom_output_text="done"), tools=[retrieve])
    return [agent.run_sync("What is in the store?").output, passages]


def onnxruntime() -> Any:
    import numpy as np
    import onnxruntime

    folder = Path(SETTINGS["onnx"])
    found = {}
    for modality, rows in SETTINGS["features"].items():
        session = onnxruntime.InferenceSession(folder / f"{modality}.onnx")
        (out,) = session.run(None, {"features": np.array(rows, np.float32)})
        found[modality] = out.tolist()
    return found


def mlflow() -> Any:
    import mlflow.pyfunc
    import numpy as np

    found = {}
    for modality, rows in SETTINGS["features"].items():
        model = mlflow.pyfunc.load_model(f"{SETTINGS['mlflow']}/{modality}")
        found[modality] = model.predict(np.array(rows, np.float32))["embeddings"].tolist()
    return found


def duckdb() -> Any:
    """Ids by their score with the query, best first, as below."""
    import duckdb

    query = "select id from read_parquet(?) order by list_dot_product(vector, ?::float[]) desc, id"
    rows = duckdb.execute(query, [SETTINGS["parquet"], SETTINGS["query"]]).fetchall()
    return [row[0] for row in rows]


def lancedb() -> Any:
    import lancedb
    import pyarrow.parquet as pq

    table = lancedb.connect(SETTINGS["scratch"]).create_table(
        "items", data=pq.read_table(SETTINGS["parquet"])
    )
    hits = table.search(SETTINGS["query"]).distance_type("dot").limit(100).to_list()
    return [hit["id"] for hit in hits]


def qdrant() -> Any:
    """As in docs/search.md."""
    import pyarrow.parquet as pq
    from qdrant_client import QdrantClient, models

    table = pq.read_table(SETTINGS["parquet"])
    client = QdrantClient(":memory:")
    size = table.schema.field("vector").type.list_size
    vectors = models.VectorParams(size=size, distance=models.Distance.DOT)
    client.create_collection("items", vectors_config=vectors)
    items = table.drop_columns("vector").to_pylist()
    client.upload_collection("items", vectors=table["vector"].to_pylist(), payload=items)
    found = client.query_points("items", query=SETTINGS["query"], limit=100)
    return [point.payload["id"] for point in found.points]


def arrow() -> Any:
    import pyarrow as pa

    table = pa.ipc.open_stream(SETTINGS["arrow"]).read_all()
    return [table.schema.metadata[b"cmcl.version"].decode(), *table.column("id").to_pylist()]


def langchain_store() -> Any:
    """The example. It uses the client of cmcl, which no earlier program has imported."""
    assert "cmcl" not in sys.modules
    sys.path += [SETTINGS["repository"], f"{SETTINGS['repository']}/examples"]
    from langchain_store import CollectionStore

    from cmcl import Client

    with Client(embeddings_url=SETTINGS["url"]) as client:
        client.create_collection("documents", MODEL)
        store = CollectionStore(client, "documents")
        ids = store.add_texts(TEXTS, [{"page": page} for page in range(len(TEXTS))])
        best = store.as_retriever(search_kwargs={"k": 2}).invoke(TEXTS[1])
        where = {"field": "page", "equals": 2}
        filtered = store.similarity_search_with_score(TEXTS[1], filter=where)
        again = store.add_texts(["another"], [{"page": 9}], ids=[ids[1]])
        store.delete([ids[0]])
        left = store.similarity_search(TEXTS[1], k=10)
        return {
            "best": [(each.id == ids[1], each.page_content, each.metadata) for each in best[:1]],
            "filtered": [(each.page_content, score) for each, score in filtered],
            "left": sorted(each.page_content for each in left),
            "same_id": again == [ids[1]],
        }


PROGRAMS: tuple[Callable[[], Any], ...] = (
    *(openai_client, openai_async, langchain, langchain_default, langchain_default_with_modality),
    *(llama_index, haystack, litellm, pydantic_ai, pydantic_ai_agent),
    *(onnxruntime, mlflow, duckdb, lancedb, qdrant, arrow, langchain_store),
)


def answer(program: Callable[[], Any]) -> Any:
    """Return a program's result, or its error."""
    try:
        return program()
    except Exception as error:  # noqa: BLE001 - the test decides which errors are right
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print(json.dumps({program.__name__: answer(program) for program in PROGRAMS}))
