"""Every benchmark as a command: it can be imported, lists its options and rejects others in one line."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks
from tests.unit.benchmarks.command import Main, answer_of

NAMES = set(re.findall(r"python -m benchmarks\.(\w+)", Path("benchmarks/README.md").read_text()))


def scripts() -> Iterator[tuple[str, Main]]:
    """Each module, or `__main__` of a package, right in benchmarks/ that has a `main`."""
    for each in pkgutil.iter_modules(benchmarks.__path__):
        module = importlib.import_module(f"benchmarks.{each.name}")
        if each.ispkg and importlib.util.find_spec(f"{module.__name__}.__main__"):
            module = importlib.import_module(f"{module.__name__}.__main__")
        if hasattr(module, "main"):
            yield each.name, module.main


def test_every_benchmark_lists_its_options_and_rejects_others_in_one_line() -> None:
    found = dict(scripts())
    assert found.keys() == NAMES
    for name, main in found.items():
        shown = answer_of(main, "--help")
        assert (shown.status, shown.stderr) == (0, ""), name
        assert f"python -m benchmarks.{name}" in shown.stdout
        refused = answer_of(main, "--none")
        assert (refused.status, refused.stdout) == (2, ""), name
        assert len(refused.stderr.splitlines()) == 1, name


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("isolation", ["--attacks", "endless-heads,none"], "'none' is not one of endless-heads"),
        ("stream", ["nowhere", "--methods", "vanilla,magic"], "unknown method 'magic'"),
        ("stream", ["nowhere", "--seeds", "0"], "'0' is not an integer of at least 1"),
        ("page", ["--versions", "0"], "'0' is not an integer of at least 1"),
    ],
)
def test_an_error_is_answered_in_one_line(name: str, arguments: list[str], words: str) -> None:
    answer = answer_of(dict(scripts())[name], *arguments)
    assert (answer.status, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert words in line
