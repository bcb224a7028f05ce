"""What the documents say can be found where they say it."""

import re
from pathlib import Path

import pytest

from tests.architecture.documents import documents, links, make_targets, named_paths, tree_paths
from tests.architecture.repository import ROOT

DOCUMENTS = documents()


def missing(names: set[str], folder: Path = ROOT) -> set[str]:
    return {name for name in names if not (folder / name).exists()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = (ROOT / document).read_text()
    assert missing({*named_paths(text), *tree_paths(text)}) == set()
    assert missing(set(links(text)), (ROOT / document).parent) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_every_make_target_that_a_document_names_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert make_targets((ROOT / document).read_text()) <= targets


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^([a-z-]+):(?!.*## \w)", makefile, re.MULTILINE) == []


def test_a_path_that_does_not_exist_would_be_found() -> None:
    text = "See `service/gone.py`, `workers/`, `models/<model>/`, `tests/*` and `x.y`."
    assert missing(set(named_paths(text))) == {"service/gone.py"}
    tree = (
        "```\nservice/    first\n  app.py    here\n  gone/     not here\n    deep.py nor this\n```"
    )
    assert missing(set(tree_paths(tree))) == {"service/gone", "service/gone/deep.py"}
    assert set(links("[a](gone.md#x) [b](#here) [c](https://example.org)")) == {"gone.md"}
    assert make_targets("Please make sure: `make test` and\n```\nmake gone\n```") == {
        "test",
        "gone",
    }
