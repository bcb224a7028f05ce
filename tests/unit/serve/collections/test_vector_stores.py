"""Collections through OpenAI's own client, unchanged: `client.vector_stores`."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.fakes.served_app import served
from tests.unit.serve.collections.conftest import Searching

ITEMS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "aaa": ("aaa", {"title": "Cats at home", "year": 2024, "tags": ["pet"], "filename": "cats.md"}),
    "eee": ("eee", {"title": "Trees", "year": 2020}),
    "iii": ("iii", None),
}


@pytest.fixture
def client(searching: Searching) -> Iterator[openai.OpenAI]:
    searching.ask("PUT", "/words", {"model": "scenes", "text_fields": ["title"]})
    revision = searching.add(
        "words",
        [
            {"id": name, "modality": "text", "text": text, "payload": payload}
            for name, (text, payload) in ITEMS.items()
        ],
    )
    searching.found("words", revision, query={"modality": "text", "text": "aaa"})
    with (
        served(searching.app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_a_text_finds_items_with_attributes_and_text(client: openai.OpenAI) -> None:
    page = client.vector_stores.search("words", query="aaa")
    best = page.data[0]
    assert best.file_id == "aaa"
    assert best.filename == "cats.md"
    assert best.attributes == {
        "modality": "text",
        "title": "Cats at home",
        "year": 2024,
        "filename": "cats.md",
    }
    assert best.content[0].text == "Cats at home"
    assert best.score == pytest.approx(1, abs=1e-4)
    assert {each.file_id for each in page.data} == set(ITEMS)


def test_several_texts_find_what_each_finds_with_its_best_score(client: openai.OpenAI) -> None:
    page = client.vector_stores.search("words", query=["aaa", "iii"], max_num_results=2)
    assert [(each.file_id, round(each.score, 3)) for each in page.data] == [("aaa", 1), ("iii", 1)]
    high = client.vector_stores.search(
        "words", query="aaa", ranking_options={"score_threshold": 0.9999}
    )
    assert [each.file_id for each in high.data] == ["aaa"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"type": "eq", "key": "title", "value": "Trees"}, {"eee"}),
        ({"type": "ne", "key": "title", "value": "Trees"}, {"aaa", "iii"}),
        ({"type": "gte", "key": "year", "value": 2024}, {"aaa"}),
        ({"type": "lt", "key": "year", "value": 2024}, {"eee"}),
        ({"type": "in", "key": "year", "value": [2020, 2024]}, {"aaa", "eee"}),
        ({"type": "nin", "key": "year", "value": [2020]}, {"aaa", "iii"}),
        (
            {
                "type": "and",
                "filters": [
                    {"type": "gt", "key": "year", "value": 2000},
                    {
                        "type": "or",
                        "filters": [
                            {"type": "eq", "key": "tags", "value": "pet"},
                            {"type": "eq", "key": "year", "value": 1999},
                        ],
                    },
                ],
            },
            {"aaa"},
        ),
    ],
)
def test_filters_of_openai_compare_payloads(
    client: openai.OpenAI, filters: Any, expected: set[str]
) -> None:
    page = client.vector_stores.search("words", query="aaa", filters=filters)
    assert {each.file_id for each in page.data} == expected


def test_stores_and_files_are_listed_page_by_page(client: openai.OpenAI) -> None:
    stores = client.vector_stores.list(limit=1)
    assert [each.id for each in stores] == ["things", "words"]  # All pages.
    store = client.vector_stores.retrieve("words")
    assert (store.status, store.file_counts.total) == ("completed", 3)
    assert [each.id for each in client.vector_stores.files.list("words", limit=2)] == sorted(ITEMS)
    file = client.vector_stores.files.retrieve("eee", vector_store_id="words")
    assert file.attributes == {"modality": "text", "title": "Trees", "year": 2020}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": "aaa", "filters": {"type": "like", "key": "a", "value": "b"}}, "filters is"),
        ({"query": "aaa", "filters": {"type": "eq", "key": "a", "value": {}}}, "permitted are"),
        ({"query": []}, "query is a list of 0"),
        ({"query": "aaa", "max_num_results": 51}, "max_num_results"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_the_client(
    client: openai.OpenAI, body: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.vector_stores.search("words", **body)
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve("missing")
