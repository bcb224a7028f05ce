"""The search benchmark on a tiny stream and tiny collections: what it leaves, and that it adds up."""

from pathlib import Path

import pytest

from benchmarks.search_follows import main
from tests.unit.benchmarks.command import Answer, answer_of
from tests.unit.benchmarks.tiny_stream import NAMES, write_stream
from workers.serve.collections.index import is_installed

pytestmark = pytest.mark.skipif(not is_installed(), reason="the extra `search` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def answer(folder: Path) -> Answer:
    small = ("--width", "8", "--epochs", "1", "--rows", "40,120", "--feature-width", "16")
    return answer_of(main, write_stream(folder / "tiny"), *small, "--out", folder / "out")


def test_each_swap_has_its_recall_before_and_after(answer: Answer) -> None:
    assert answer.status == 0, answer.stderr
    swaps = answer.document["swaps"]
    assert [swap["version"] for swap in swaps] == list(range(2, len(NAMES) + 1))
    for swap in swaps:
        assert all(0 <= swap[name] <= 1 for name in ("before", "stale", "after"))
    assert len({swap["rows"] for swap in swaps}) == 1


def test_collections_of_each_size_are_followed_and_searched(answer: Answer) -> None:
    assert [each["rows"] for each in answer.document["following"]] == [40, 120]
    for each in answer.document["searching"]:
        assert each["exact"] > 0
        assert each["graph"] is each["recall"] is None


def test_the_page_has_the_figures_of_the_document(answer: Answer, folder: Path) -> None:
    page = (folder / "out" / "search-follows.md").read_text()
    for swap in answer.document["swaps"]:
        assert f"{100 * swap['after']:.1f}" in page
    assert page in answer.stdout
