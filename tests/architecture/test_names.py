"""Names that are too general, and modules without a description."""

import ast
from pathlib import Path

from tests.architecture.repository import ROOT, repository_files

SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "manager", "base", "misc"}


def python_files() -> list[Path]:
    return [path for path in repository_files() if path.suffix == ".py"]


def test_no_module_has_a_vague_name() -> None:
    assert [path for path in python_files() if SAY_NOTHING & set(path.with_suffix("").parts)] == []


def test_every_module_of_the_product_says_what_it_is_for() -> None:
    silent = [
        path
        for path in python_files()
        if path.parts[0] in ("cmcl", "service", "workers")
        and not ast.get_docstring(ast.parse((ROOT / path).read_text()))
    ]
    assert silent == []
