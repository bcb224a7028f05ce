"""The page of `benchmarks.search_follows`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table

_Row = Mapping[str, Any]
_OF_GRAPHS = ("graph", "bytes_graph")


def markdown(document: Mapping[str, Any], question: str) -> str:
    """Question, machine, tables."""
    machine = "\n".join(f"- {name}: {value}" for name, value in document["machine"].items())
    return (
        "\n\n".join(
            (
                "# Search follows the model",
                f"## Question\n{question}",
                f"## Machine\n{machine}",
                _swaps(document["swaps"]),
                _left_alone(document["left_alone"]),
                _following(document["following"], document["sizes"]),
                _searching(document["searching"]),
                "",
            )
        ).rstrip()
        + "\n"
    )


def _swaps(swaps: Sequence[_Row]) -> str:
    lines = [
        (
            each["version"],
            f"{each['seconds']:.2f}",
            *(_points(each[name]) for name in ("before", "stale", "after")),
        )
        for each in swaps
    ]
    return (
        "## Recall@10 before and after each swap\n"
        "The example stream, policy improve; all held-out rows of all datasets, both sides, in one "
        f"collection of {swaps[-1]['rows']} items. Over the datasets that were learned before the "
        "swap: by the old version; queries by the new version on the old vectors, as an index that "
        "does not follow; by the new version on vectors made anew. Seconds from the pointer's move "
        "until the new version answers searches; until then the old one does.\n\n"
        + table(("to version", "seconds", "before", "stale", "after"), lines)
    )


def _left_alone(rows: Sequence[_Row]) -> str:
    lines = [
        (each["dataset"], *(_points(each[name]) for name in ("learned", "stale", "after")))
        for each in rows
    ]
    return (
        "## An index that never follows\n"
        "Recall@10 of each dataset: by the version that learned it; at the end on the vectors of "
        "that version, under queries of the last; at the end on vectors made anew.\n\n"
        + table(("dataset", "learned", "stale", "after"), lines)
    )


def _following(rows: Sequence[_Row], sizes: Mapping[str, int]) -> str:
    lines = [
        (
            each["rows"],
            f"{each['first']:.1f}",
            f"{each['again']:.1f}",
            f"{1e5 * each['again'] / each['rows']:.1f}",
            *("-" if each["graph"] is None else f"{each[name]:.0f}" for name in _OF_GRAPHS),
            f"{each['bytes_index']:.0f}",
            f"{each['bytes_grown']:.0f}",
        )
        for each in rows
    ]
    headings = (
        *("rows", "first", "after a swap", "of 100,000", "graph"),
        *("bytes of the graph", "of the index", "that the process grew"),
    )
    return (
        "## What following costs\n"
        f"Features of width {sizes['feature_width']} (float16 in the store) to vectors of width "
        f"{sizes['width']}, in the follower's one thread; seconds until the version answers, without "
        "graphs; seconds of building one graph of all rows. Bytes for each row: of the graph; of "
        "vectors, ids and payloads; and what the whole process grew by when it read them for the "
        "first time, with Python's table of ids and what readers keep.\n\n" + table(headings, lines)
    )


def _searching(rows: Sequence[_Row]) -> str:
    lines = [
        (
            each["rows"],
            *(_rate(each[name]) for name in ("exact", "usearch_exact", "graph")),
            "-" if each["recall"] is None else f"{each['recall']:.3f}",
        )
        for each in rows
    ]
    headings = ("rows", "exact", "usearch exact", "graph", "recall@10 of the graph")
    return (
        "## What searching costs\n"
        "One query after another with one thread: milliseconds (median) and queries a second. exact: "
        "every row is compared. usearch exact: its own exact search of the same vectors. graph: HNSW, "
        "which is used from 100,000 rows of a modality on. The three by turns. Rows have no "
        "clusters, which is the hardest case for a graph.\n\n" + table(headings, lines)
    )


def _rate(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.2f} ({1000 / milliseconds:,.0f}/s)"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
