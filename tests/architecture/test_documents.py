"""Paths, links and commands in documents exist."""

import re
from collections.abc import Sequence
from pathlib import Path

from cmcl.cli import command_tree
from tests.architecture.documents import (
    code_blocks,
    code_of,
    command_lines,
    documents,
    links,
    make_targets,
    named_paths,
    named_tests,
    tree_paths,
)
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


def missing_tests(text: str) -> set[str]:
    return {
        f"{file}::{name}"
        for file, name in named_tests(text)
        if not (ROOT / file).is_file() or f"def {name}(" not in (ROOT / file).read_text()
    }


def test_every_test_that_a_document_names_exists() -> None:
    for document in DOCUMENTS:
        assert missing_tests((ROOT / document).read_text()) == set(), document


def test_every_row_about_other_tools_names_a_test() -> None:
    rows = re.findall(
        r"^\| (?!---).* \|$", (ROOT / "docs/integrations.md").read_text(), re.MULTILINE
    )
    tables = [row for row in rows if not row.endswith("| shown by |")]
    assert len(tables) > 30
    unproven = [row for row in tables if not list(named_tests(row)) and "| the same" not in row]
    assert unproven == []


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        assert make_targets((ROOT / document).read_text()) <= targets, document


def unknown_in(arguments: Sequence[str]) -> list[str]:
    """Words of a command line that name no command or option of `cmcl`."""
    command, rest = command_tree(), list(arguments)
    while commands := getattr(command, "commands", None):
        if not rest or rest[0].startswith("-") or not rest[0].islower():
            break
        if rest[0] not in commands:
            return rest[:1]
        command = commands[rest.pop(0)]
    names = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    options = (word.partition("=")[0] for word in rest if re.match("--[a-z]", word))
    return [option for option in options if option not in {*names, "--help"}]


def test_every_command_that_a_document_names_exists() -> None:
    for document in DOCUMENTS:
        for arguments in command_lines((ROOT / document).read_text()):
            assert unknown_in(arguments) == [], (document, arguments)


def test_every_command_that_the_page_names_exists() -> None:
    templates = list((ROOT / "service/page/templates").glob("*.html"))
    lines = [
        line
        for template in templates
        for line in re.findall(r'ui\.command\("cmcl (.*?)\) *}}', template.read_text())
    ]
    assert len(lines) > 20
    for line in lines:
        assert unknown_in(line.replace('"', " ").split()) == [], line


def test_a_command_that_does_not_exist_would_be_found() -> None:
    text = "`cmcl job watch` and `cmcl job gone`\n```sh\ncmcl search a b \\\n    --file x   # --here\n```\n"
    found = [unknown_in(arguments) for arguments in command_lines(text)]
    assert found == [["--file"], [], ["gone"]]


def test_a_path_that_does_not_exist_would_be_found() -> None:
    text = "See `service/gone.py`, `workers/`, `models/<model>/`, `tests/*` and `x.y`."
    assert missing(set(named_paths(text))) == {"service/gone.py"}
    text = "`tests/architecture/test_documents.py::missing_tests`, `tests/architecture/test_documents.py::test_gone`"
    assert missing_tests(text) == {"tests/architecture/test_documents.py::test_gone"}
    tree = (
        "```\nservice/    first\n  app.py    here\n  gone/     not here\n    deep.py nor this\n```"
    )
    assert missing(set(tree_paths(tree))) == {"service/gone", "service/gone/deep.py"}
    assert set(links("[a](gone.md#x) [b](#here) [c](https://example.org)")) == {"gone.md"}
    assert make_targets("Please make sure: `make test` and\n```\nmake gone\n```") == {
        "test",
        "gone",
    }


def test_a_block_is_run_unless_the_page_says_why_not() -> None:
    text = (
        "```\na tree\n```\n<!-- not run: it installs -->\n```sh\nmake setup\n```\n"
        "<!-- a remark -->\n```sh\nls\n```\n```python\nprint(1)\n```\n"
    )
    assert [(block.text, block.is_run) for block in code_blocks(text)] == [
        ("make setup\n", False),
        ("ls\n", True),
        ("print(1)\n", True),
    ]
    assert code_of(text, "sh") == ["ls\n"]
