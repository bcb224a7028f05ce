"""The index in memory: exact search is exact, the graph is close to it, with and without filters."""

import json

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.serve.collections.scene import (
    Scene,
    add,
    brute_force,
    create,
    embedded,
    entries,
    removals,
    search,
)
from workers.serve.collections.filters import parse_filter
from workers.serve.collections.index import Contents, Graph, Part, is_installed
from workers.serve.collections.payloads import Payloads
from workers.serve.versions.loading import Float32Array

ROWS, WIDTH, ASKED = 6000, 64, 100
needs_usearch = pytest.mark.skipif(not is_installed(), reason="the extra `search` is not installed")


def like_embeddings(count: int, seed: int) -> Float32Array:
    """Unit rows that vary mostly in 16 directions, as embeddings do."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(0).normal(size=(16, WIDTH))
    found = random.normal(size=(count, 16)) @ directions + 0.3 * random.normal(size=(count, WIDTH))
    unit: Float32Array = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return unit


@pytest.fixture(scope="module")
def large() -> Part:
    """A part with a graph; each tenth row is of colour 0, each hundredth of shade 0."""
    vectors = like_embeddings(ROWS, seed=1)
    payloads = [json.dumps({"colour": row % 10, "shade": row % 100}) for row in range(ROWS)]
    contents = Contents(
        "image",
        pa.array([f"row-{row}" for row in range(ROWS)]),
        Payloads.of(pa.array(payloads, pa.string())),
    )
    graph = Graph(WIDTH)
    for _ in graph.grow(vectors):
        pass
    return Part(contents, vectors, np.ones(ROWS, bool), graph)


def recall(part: Part, wanted_N: np.ndarray, few: int) -> float:
    """Share of the true ten best that are found, over many queries."""
    hits = 0
    for query_E in like_embeddings(ASKED, seed=2):
        scores = np.where(wanted_N, part.vectors_NE @ query_E, -np.inf)
        true = set(np.argsort(-scores)[:10].tolist())
        found = part.nearest(query_E, wanted_N, 10, few)
        assert len(set(found.rows_K.tolist())) == 10
        assert (np.diff(found.scores_K) <= 0).all()
        np.testing.assert_allclose(found.scores_K, scores[found.rows_K], atol=1e-5)
        hits += len(true & set(found.rows_K.tolist()))
    return hits / (10 * ASKED)


def test_exact_search_finds_what_brute_force_finds(scene: Scene) -> None:
    add(scene.store, entries(0, 60) + entries(0, 40, "text"))
    index = scene.settle()
    both = [("image", n) for n in range(60)] + [("text", n) for n in range(40)]
    for number in range(200, 220):
        query_E = embedded(index.version, "text", number)
        found = search(index, "text", number)
        assert found.exact
        assert [hit.id for hit in found.hits] == brute_force(index, query_E, both)


@needs_usearch
def test_the_graph_finds_nearly_all_nearest_rows(large: Part) -> None:
    assert recall(large, large.live_N, few=0) >= 0.98


@needs_usearch
def test_recall_does_not_suffer_from_removed_rows(large: Part) -> None:
    live_N = np.arange(ROWS) % 3 != 0
    assert recall(large, live_N, few=0) >= 0.98


@needs_usearch
def test_what_a_filter_leaves_of_many_is_searched_exactly_if_it_is_little(large: Part) -> None:
    colour_N = np.arange(ROWS) % 10 == 0
    assert recall(large, colour_N, few=1000) == 1.0
    assert large.nearest(like_embeddings(1, 3)[0], colour_N, 10, few=1000).exact


@needs_usearch
def test_a_graph_is_not_searched_for_all_rows(large: Part) -> None:
    shade_N = np.arange(ROWS) % 1000 == 0
    found = large.nearest(like_embeddings(1, 3)[0], shade_N, 10, few=0)
    assert found.exact
    assert set(found.rows_K.tolist()) == set(range(0, ROWS, 1000))


def test_a_collection_smaller_than_top_k_is_returned_whole(scene: Scene) -> None:
    add(scene.store, entries(0, 3))
    assert {hit.id for hit in search(scene.settle(), "text", 5).hits} == {
        "image-0",
        "image-1",
        "image-2",
    }


def test_an_empty_collection_has_no_hits(scene: Scene) -> None:
    create(scene.store)
    found = search(scene.settle(), "text", 5)
    assert (found.hits, found.exact) == ([], True)


def test_a_text_query_for_images_finds_only_images(scene: Scene) -> None:
    add(scene.store, entries(0, 20) + entries(0, 20, "text"))
    index = scene.settle()
    found = search(index, "text", 3, modalities={"image"})
    assert {hit.modality for hit in found.hits} == {"image"}
    query_E = embedded(index.version, "text", 3)
    assert [hit.id for hit in found.hits] == brute_force(
        index, query_E, [("image", n) for n in range(20)]
    )
    assert search(index, "text", 3).hits[0].id == "text-3"


def test_a_filter_leaves_rows_with_their_payloads(scene: Scene) -> None:
    red = entries(0, 30, payload='{"colour":"red"}')
    blue = entries(100, 30, payload='{"colour":"blue"}')
    add(scene.store, red + blue)
    index = scene.settle()
    wanted = parse_filter({"field": "colour", "equals": "blue"})
    found = search(index, "image", 5, filter=wanted, top_k=50)
    assert {hit.id for hit in found.hits} == {f"image-{n}" for n in range(100, 130)}
    assert {hit.payload for hit in found.hits} == {'{"colour":"blue"}'}


def test_a_row_that_is_written_again_is_there_once(scene: Scene) -> None:
    add(scene.store, entries(0, 5, payload='{"n":1}'))
    scene.settle()
    new = entries(3, 1)[0]._replace(feature_F=entries(90, 1)[0].feature_F, payload='{"n":2}')
    add(scene.store, [new])
    index = scene.settle()
    assert index.rows == 5
    best = search(index, "image", 90).hits[0]
    assert (best.id, best.payload) == ("image-3", '{"n":2}')
    assert best.score == pytest.approx(1, abs=1e-5)


def test_a_row_can_change_its_modality(scene: Scene) -> None:
    add(scene.store, entries(0, 2))
    scene.settle()
    add(scene.store, [entries(7, 1, "text")[0]._replace(id="image-1")])
    index = scene.settle()
    assert (index.rows_of("image"), index.rows_of("text")) == (1, 1)
    assert search(index, "text", 7).hits[0].id == "image-1"
    scene.swap(2)
    assert search(scene.settle(), "text", 7).hits[0].id == "image-1"


def test_removed_rows_are_not_found(scene: Scene) -> None:
    add(scene.store, entries(0, 5))
    scene.settle()
    add(scene.store, removals(["image-2", "image-99"]))
    index = scene.settle()
    assert {hit.id for hit in search(index, "image", 2).hits} == {
        f"image-{n}" for n in (0, 1, 3, 4)
    }


def test_equal_scores_come_by_id(scene: Scene) -> None:
    same = [entries(1, 1)[0]._replace(id=name) for name in ("c", "a", "b")]
    add(scene.store, same)
    assert [hit.id for hit in search(scene.settle(), "image", 1).hits] == ["a", "b", "c"]


def test_hundreds_of_small_changes_become_few_parts(scene: Scene) -> None:
    for change in range(60):
        add(scene.store, entries(change, 2))
        scene.follower.poll()
    index = scene.settle()
    assert index.rows == 61
    assert len(index.parts) < 12
    both = [("image", n) for n in range(61)]
    query_E = embedded(index.version, "image", 500)
    assert [hit.id for hit in search(index, "image", 500).hits] == brute_force(index, query_E, both)
