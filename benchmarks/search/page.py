"""Markdown page of `benchmarks.search_follows`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import table

_Row = Mapping[str, Any]
_OF_GRAPHS = ("graph", "bytes_graph")


def markdown(document: Mapping[str, Any], question: str) -> str:
    """Render the page."""
    machine = "\n".join(f"- {name}: {value}" for name, value in document["machine"].items())
    return (
        "\n\n".join(
            (
                "# Search after a model swap",
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
        "The example stream with policy improve: the held-out rows of all datasets, both sides, in "
        f"one collection of {swaps[-1]['rows']} items. Measured over the datasets learned before the "
        "swap: with the old version; with queries of the new version on the old vectors, as in an "
        "index that is not updated; and with the new version on recomputed vectors. Seconds from "
        "the pointer update until searches use the new version; until then they use the old "
        "one.\n\n" + table(("to version", "seconds", "before", "stale", "after"), lines)
    )


def _left_alone(rows: Sequence[_Row]) -> str:
    lines = [
        (each["dataset"], *(_points(each[name]) for name in ("learned", "stale", "after")))
        for each in rows
    ]
    return (
        "## An index that is never updated\n"
        "Recall@10 of each dataset: with the version that learned it; at the end, with queries of "
        "the last version on the vectors of that version; at the end, on recomputed vectors.\n\n"
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
        *("bytes of the graph", "of the index", "growth of the process"),
    )
    return (
        "## Cost of updating an index\n"
        f"Features of width {sizes['feature_width']} (float16 in the store) to vectors of width "
        f"{sizes['width']}, in the indexer's single thread; seconds until the version is searched, "
        "without graphs; seconds to build one graph of all rows. Bytes per row: of the graph; of "
        "vectors, ids and payloads; and growth of the process when it first read them, including "
        "Python's table of ids and buffers of readers.\n\n" + table(headings, lines)
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
        "## Cost of a search\n"
        "Sequential queries with one thread, alternating between the three: milliseconds (median) "
        "and queries per second. exact: every row is compared. usearch exact: usearch's exact "
        "search of the same vectors. graph: HNSW, which is used for 100,000 and more rows of a "
        "modality. Rows have no clusters, which is the hardest case for a graph.\n\n"
        + table(headings, lines)
    )


def _rate(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.2f} ({1000 / milliseconds:,.0f}/s)"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
