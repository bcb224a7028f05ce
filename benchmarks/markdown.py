"""What all pages of results are made of, in Markdown."""

from collections.abc import Mapping, Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A row for each of `rows`, under `head`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def listed(facts: Mapping[str, object]) -> str:
    """A line for each fact."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
