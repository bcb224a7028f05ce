"""The series that a control plane and a replica export, with their labels."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.repository import ROOT
from tests.unit.service.telemetry.samples import every_family, labels_of

_SERVE = ROOT / "workers" / "serve"
_SERVING_SUFFIXES = {
    "_counter": ("",),
    "_gauge": ("",),
    "_histogram": ("_bucket", "_count", "_sum"),
}
# What Ray adds to every series.
RAY_LABELS = {"worker"}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}


def all_series(folder: Path) -> dict[str, set[str]]:
    """The labels of every series by its name. `folder`: for a control plane."""
    return serving_series() | {
        f"{family.name}{suffix}": labels_of(family)
        for family in every_family(folder)
        for suffix in SUFFIXES.get(family.type, ("",))
    }


def serving_series() -> dict[str, set[str]]:
    """The labels of every series by its name."""
    made = [*_made("ray_adapters.py"), *_watched("deployment.py")]
    return {f"ray_cmcl_serve_{name}": labels | RAY_LABELS for name, labels in made}


def _made(file: str) -> Iterator[tuple[str, set[str]]]:
    """`_counter(name, description, *labels)`; a histogram has its bounds before the labels."""
    for call, words in _calls(file):
        if isinstance(call.func, ast.Name) and call.func.id in _SERVING_SUFFIXES and words:
            for suffix in _SERVING_SUFFIXES[call.func.id]:
                yield f"{words[0]}{suffix}", {*words[2:]}


def _watched(file: str) -> Iterator[tuple[str, set[str]]]:
    for call, words in _calls(file):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "watch" and words:
            yield words[0], set()


def _calls(file: str) -> Iterator[tuple[ast.Call, list[str]]]:
    """Every call with its string arguments, including those in starred tuples."""
    for node in ast.walk(ast.parse((_SERVE / file).read_text())):
        if isinstance(node, ast.Call):
            values = [value for argument in node.args for value in _values(argument)]
            yield node, [value for value in values if isinstance(value, str)]


def _values(argument: ast.expr) -> list[object]:
    if isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple):
        return [value for element in argument.value.elts for value in _values(element)]
    return [argument.value] if isinstance(argument, ast.Constant) else []
