"""Limits on the size of files and functions, and names that are too general."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.repository import ROOT, repository_files

LONGEST_FILE = 350
LONGEST_FUNCTION = 60
SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "manager", "base", "misc"}


def python_files() -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".py"]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function, also of those inside others."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_python_file_is_longer_than_350_lines() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in python_files()}
    assert lengths
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    found = [(path, *function) for path in python_files() for function in functions(path)]
    assert found
    assert [function for function in found if function[2] > LONGEST_FUNCTION] == []


def test_no_module_has_a_vague_name() -> None:
    assert [path for path in python_files() if SAY_NOTHING & set(path.with_suffix("").parts)] == []


def test_every_module_of_the_product_says_what_it_is_for() -> None:
    silent = [
        path
        for path in python_files()
        if path.parts[0] in ("cmcl", "service", "workers") and not ast.get_docstring(parsed(path))
    ]
    assert silent == []
