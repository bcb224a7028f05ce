"""Markdown elements of all result pages."""

from collections.abc import Mapping, Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def listed(facts: Mapping[str, object]) -> str:
    """Return a list with one line per entry."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
