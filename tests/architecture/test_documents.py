"""What the documents say can be found where they say it."""

import re
from pathlib import Path

from tests.architecture.documents import documents, links, make_targets, named_paths, tree_paths
from tests.architecture.repository import ROOT

DOCUMENTS = documents()


def missing(names: set[str], folder: Path = ROOT) -> set[str]:
    return {name for name in names if not (folder / name).exists()}


def test_every_path_that_a_document_names_exists() -> None:
    assert DOCUMENTS
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        assert missing({*named_paths(text), *tree_paths(text)}) == set(), document
        assert missing(set(links(text)), (ROOT / document).parent) == set(), document


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        assert make_targets((ROOT / document).read_text()) <= targets, document


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
