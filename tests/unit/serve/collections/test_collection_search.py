"""What a search finds, against plain Python: by vectors in each type and width, with and without an index, by words."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from cmcl.contract.model import ModelSpec
from tests.unit.serve.collections.conftest import Searching
from tests.unit.serve.collections.scene import (
    Scene,
    create,
    embedded,
    entries,
    feature,
    removals,
    search,
)
from tests.unit.serve.collections.test_collection_routes import image_query, item
from tests.unit.serve.served_versions import version
from workers.serve.collections import columns, searching
from workers.serve.collections.columns import column_of
from workers.serve.collections.searching import Hit, Searched, SearchQuery
from workers.serve.collections.table import Row

WIDE = ModelSpec(width=64, modalities={"image": 5, "text": 4})
IMAGES = range(40)


def scores(searched: Searched, numbers: Sequence[int] = IMAGES) -> dict[str, float]:
    """Cosines of the embeddings of images with that of the query text 300."""
    every = [embedded(searched.version, "image", number) for number in numbers]
    found = np.stack(every) @ embedded(searched.version, "text", 300)
    return {f"image-{number}": float(score) for number, score in zip(numbers, found, strict=True)}


@pytest.mark.parametrize("feature_type", ["float32", "float16"])
@pytest.mark.parametrize("vector_type", ["float32", "float16", "bit"])
@pytest.mark.parametrize("dimensions", [None, 3])
def test_scores_are_the_cosines_of_whole_embeddings_in_each_type_and_width(
    scene: Scene, feature_type: str, vector_type: str, dimensions: int | None
) -> None:
    create(scene.store, feature_type=feature_type, vector_type=vector_type, dimensions=dimensions)
    # Features are as long as they like: float16 ends at 65,504.
    scene.add(
        [
            row._replace(feature_F=1e5 * feature("image", at))
            for at, row in enumerate(entries(0, 20))
        ]
    )
    scene.settle()
    scene.swap(2)
    scene.add(entries(20, 20))
    searched = scene.settle()
    schema = searched.state.dataset.schema
    assert schema.field("feature").type.value_type == pa.type_for_alias(feature_type)
    stored = schema.field(column_of(searched.version)).type.value_type
    assert stored == (pa.uint8() if vector_type == "bit" else pa.type_for_alias(vector_type))
    assert searched.width == (dimensions or 6)
    tolerance = 5e-3 if "float16" in (feature_type, vector_type) else 1e-5
    hits = search(searched, "text", 300, top_k=40, modalities=["image"]).hits
    assert {hit.id: hit.score for hit in hits} == pytest.approx(scores(searched), abs=tolerance)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("vector_type", ["float32", "float16", "bit"])
@pytest.mark.parametrize("width", [64, 6])
def test_an_index_finds_what_comparing_all_rows_finds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, vector_type: str, width: int
) -> None:
    monkeypatch.setattr(columns, "INDEX_FROM_ROWS", 100)
    monkeypatch.setattr(searching, "_FEW", 0)
    scene.swap(2, version(2, spec=WIDE if width == 64 else version(2).spec))
    create(scene.store, vector_type=vector_type)
    payloads = [json.dumps({"n": n, "third": n % 3 == 0}) for n in range(300)]
    scene.add(
        [
            row._replace(payload=payload)
            for row, payload in zip(entries(0, 300), payloads, strict=True)
        ]
    )
    scene.add(entries(0, 60, "text"))
    scene.settle()
    scene.add(removals([f"image-{n}" for n in range(0, 300, 7)]))
    scene.add(entries(1000, 3))
    searched = scene.settle()
    for wanted in (
        {},
        {"modalities": ["text"]},
        {"filter": searched.filter_sql({"field": "third", "equals": True})},
        {"filter": searched.filter_sql({"field": "n", "range": {"gte": 290}})},
        {"top_k": 1000},
    ):
        found = search(searched, "text", 300, **wanted)
        exact = search(searched, "text", 300, exact=True, **wanted)
        assert (found.exact, exact.exact) == (False, True)
        ids = [hit.id for hit in exact.hits]
        assert len({hit.id for hit in found.hits} & set(ids)) >= 0.9 * len(ids) > 0
        right = {
            hit.id: hit.score for hit in search(searched, "text", 300, exact=True, top_k=1000).hits
        }
        assert {hit.id: hit.score for hit in found.hits} == pytest.approx(
            {hit.id: right[hit.id] for hit in found.hits}, abs=2e-3
        )
    assert len(ids) == searched.rows() == 300 - 43 + 60 + 3


def test_ties_are_in_the_order_of_ids_and_top_k_may_exceed_the_rows(scene: Scene) -> None:
    create(scene.store)
    for name in ("c", "a", "d", "b"):
        scene.add([Row(name, "image", feature("image", 1), None)])
    scene.add(entries(5, 3))
    hits = search(scene.settle(), "image", 1, top_k=50).hits
    assert [hit.id for hit in hits[:4]] == ["a", "b", "c", "d"]
    assert len(hits) == 7


TITLES = {
    "image-0": "the tram in the old town",
    "image-1": "tram tram tram",
    "image-2": "a boat",
    "image-3": ["a list", "with a Tram"],
    "text-0": "the old tram",
}


@pytest.fixture(params=[False, True], ids=["without an index", "with an index"])
def titled(
    request: pytest.FixtureRequest, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> Searched:
    """Titles are searched for words, and notes are not."""
    create(scene.store, text_fields=["title"])
    if request.param:
        monkeypatch.setattr(columns, "INDEX_FROM_ROWS", 3)
    new = entries(0, 8) + entries(0, 2, "text")
    payloads = {name: {"title": title, "town": name[-1]} for name, title in TITLES.items()}
    rows = [
        row._replace(payload=json.dumps(payloads.get(row.id, {"note": "tram", "title": 7})))
        for row in new
    ]
    scene.add(rows[:4])
    scene.settle()
    scene.add(rows[4:])
    scene.settle()
    scene.add(removals(["image-0"]))
    scene.add(rows[:1])
    searched = scene.settle()
    assert (searched.column in searched.state.indexes) == request.param
    return searched


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def test_words_find_the_payloads_that_have_them(titled: Searched) -> None:
    def by_words(words: str, **more: object) -> list[str]:
        found = titled.search(SearchQuery(10, words=words, **more))  # type: ignore[arg-type]
        assert [hit.score for hit in found.hits] == sorted(
            (hit.score for hit in found.hits), reverse=True
        )
        assert found.exact
        return ids(found.hits)

    assert set(by_words("tram")) == {"image-0", "image-1", "image-3", "text-0"}
    assert by_words("tram")[0] == "image-1"
    assert by_words("Boats") == ["image-2"]
    assert by_words("old tram")[:2] == ["text-0", "image-0"]
    assert by_words("tram", modalities=["text"]) == ["text-0"]
    only = titled.filter_sql({"field": "town", "in": ["2", "3"]})
    assert by_words("tram", filter=only) == ["image-3"]
    assert by_words("zeppelin") == []
    assert by_words("\"tram's' OR title:( \\") != []
    assert len(titled.search(SearchQuery(2, words="tram")).hits) == 2


def test_words_and_a_query_are_fused_by_their_ranks(titled: Searched) -> None:
    query_E = embedded(titled.version, "image", 5)
    near = ids(titled.search(SearchQuery(100, query_E)).hits)
    words = ids(titled.search(SearchQuery(100, words="old tram")).hits)
    expected = {
        name: sum(1 / (61 + ranking.index(name)) for ranking in (near, words) if name in ranking)
        for name in near
    }
    both = titled.search(SearchQuery(4, query_E, words="old tram")).hits
    assert {hit.id: hit.score for hit in both} == pytest.approx(
        dict(sorted(expected.items(), key=lambda each: (-each[1], each[0]))[:4])
    )
    among = titled.search(SearchQuery(10, query_E, words="old tram", modalities=["text"])).hits
    assert set(ids(among)) == {"text-0", "text-1"}
    assert ids(among)[0] == "text-0"


def test_words_of_a_collection_without_text_fields_are_refused(searching: Searching) -> None:
    revision = searching.add("things", [item("image", 1, payload={"title": "tram"})])
    assert searching.found("things", revision, query=image_query(1)) == ["image-1"]
    refused = searching.ask("POST", "/things/search", {"words": "tram"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "words"
    made = searching.ask("PUT", "/titled", {"model": "scenes", "text_fields": ["title"]})
    assert made.json()["text_fields"] == ["title"]
    revision = searching.add(
        "titled", [item("image", 1, payload={"title": "tram"}), item("image", 2)]
    )
    assert searching.found("titled", revision, words="tram") == ["image-1"]
    assert searching.found("titled", words="tram", query=image_query(2)) == ["image-1", "image-2"]
