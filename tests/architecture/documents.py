"""What the documents name: paths in backticks, links, trees of folders, make targets."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tests.architecture.repository import ROOT, repository_files

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TREE_LINE = re.compile(r"(?P<indent> *)(?P<names>(?:[\w.-]+(?:/|\.\w+)(?:[\w./-]*)(?:\s+|$))+)")
_MAKE = re.compile(r"\bmake ([a-z-]+)")


def documents() -> list[Path]:
    """All documents for users."""
    return [path for path in repository_files() if path.suffix == ".md"]


def named_paths(text: str) -> Iterator[str]:
    """In backticks, and beginning with one of the repository's own folders or files.

    Placeholders (`models/<model>/`, `tests/*`) are no paths.
    """
    tops = {path.parts[0] for path in repository_files()}
    for token in _CODE.findall(_FENCE.sub("", text)):
        first, slash, _ = token.partition("/")
        plain = re.fullmatch(r"[\w./-]+(:\d+)?", token)
        if plain and first in tops and (slash or "." in token):
            yield token.partition(":")[0]


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
    """Behind `make` in anything that is set as code."""
    code = [*_FENCE.findall(text), *_CODE.findall(_FENCE.sub("", text))]
    return {target for part in code for target in _MAKE.findall(part)}


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
