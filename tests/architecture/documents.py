"""Parts of documents: paths in backticks, links, trees of folders, make targets, code blocks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.architecture.repository import ROOT, repository_files

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A comment in front says that tests do not run the block, and why.
_BLOCK = re.compile(
    r"^(?P<comment><!-- not run: [^>]+ -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CODE = re.compile(r"`([^`\n]+)`")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TREE_LINE = re.compile(r"(?P<indent> *)(?P<names>(?:[\w.-]+(?:/|\.\w+)(?:[\w./-]*)(?:\s+|$))+)")
# Where a shell expects a command, perhaps after variables; up to a comment or what ends the command.
_COMMAND = re.compile(
    r"(?:^|[|;&(]|\b(?:until|if|then|do) )[ $]*(?:\w+=\S* )*(?:\.venv/bin/)?cmcl (?P<arguments>[^\n#|;&)<>]*)",
    re.MULTILINE,
)
_MAKE = re.compile(r"\bmake ([a-z-]+)")


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block with a language; `is_run` is False if the page says that tests do not run it."""

    language: str
    text: str
    is_run: bool


def code_blocks(text: str) -> list[CodeBlock]:
    """All fenced blocks with a language, in their order."""
    return [
        CodeBlock(found["language"], found["text"], is_run=found["comment"] is None)
        for found in _BLOCK.finditer(text)
    ]


def code_of(text: str, language: str) -> list[str]:
    """The blocks of one language that are run, in their order."""
    return [each.text for each in code_blocks(text) if each.is_run and each.language == language]


def documents() -> list[Path]:
    """All documents for users."""
    return [path for path in repository_files() if path.suffix == ".md"]


def named_paths(text: str) -> Iterator[str]:
    """Paths in backticks that begin with a folder or file of the repository.

    Placeholders (`models/<model>/`, `tests/*`) are no paths.
    """
    tops = {path.parts[0] for path in repository_files()}
    for token in _CODE.findall(_FENCE.sub("", text)):
        first, slash, _ = token.partition("/")
        plain = re.fullmatch(r"[\w./-]+(:\d+)?", token)
        if plain and first in tops and (slash or "." in token):
            yield token.partition(":")[0]


def named_tests(text: str) -> Iterator[tuple[str, str]]:
    """File and name of tests in backticks, as pytest writes them: `tests/a/test_b.py::test_c`."""
    yield from _TEST.findall(_FENCE.sub("", text))


def links(text: str) -> Iterator[str]:
    """Targets of links to other files of the repository."""
    for target in _LINK.findall(_FENCE.sub("", text)):
        if "://" not in target and not target.startswith(("#", "mailto:")):
            yield target.partition("#")[0]


def tree_paths(text: str) -> Iterator[str]:
    """Paths in fenced trees: indented lines belong to the line above that is indented less."""
    for fence in _FENCE.findall(text):
        lines = fence.splitlines()[1:-1]
        if lines and _starts_tree(lines[0]):
            yield from _walk(lines)


def make_targets(text: str) -> set[str]:
    """Names after `make` in code spans and code blocks."""
    code = [*_FENCE.findall(text), *_CODE.findall(_FENCE.sub("", text))]
    return {target for part in code for target in _MAKE.findall(part)}


def command_lines(text: str) -> Iterator[list[str]]:
    """Arguments of each command line of `cmcl` in code spans and in blocks of shell commands."""
    blocks = [each.text.replace("\\\n", " ") for each in code_blocks(text) if each.language == "sh"]
    spans = [code for code in _CODE.findall(_FENCE.sub("", text)) if code.startswith("cmcl ")]
    for code in (*blocks, *spans):
        yield from (found["arguments"].split() for found in _COMMAND.finditer(code))


def _starts_tree(line: str) -> bool:
    found = _TREE_LINE.match(line)
    return found is not None and (ROOT / found["names"].split()[0]).is_dir()


def _walk(lines: list[str]) -> Iterator[str]:
    above: list[tuple[int, PurePosixPath]] = []
    for line in lines:
        found = _TREE_LINE.match(line)
        if not found:
            continue
        indent = len(found["indent"])
        above = [entry for entry in above if entry[0] < indent]
        parent = above[-1][1] if above else PurePosixPath()
        paths = [parent / name for name in found["names"].split()]
        yield from map(str, paths)
        above.append((indent, paths[-1]))
