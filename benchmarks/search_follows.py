"""Does search use a new version after a swap, and what does that cost?

`python -m benchmarks.search_follows DIR` learns a stream, writes its held-out rows to a collection,
and makes each version live in turn; then it indexes and searches collections of growing size.
Store, indexer and indexes are the product's own.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, count, counts, log_progress, table
from benchmarks.folder import InvalidStream, Stream, read_stream
from benchmarks.reindex import learn_stream
from benchmarks.report import machine
from benchmarks.search.recall import swaps
from benchmarks.search.speed import measured
from cmcl.contract.model import ModelSpec, TrainingSpec

_RESULTS = Path(".cmcl/benchmarks")
_STEM = "search-follows"

_Row = Mapping[str, Any]
_OF_GRAPHS = ("graph", "bytes_graph")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        stream = read_stream(options.stream)
    except InvalidStream as error:
        parser.error(str(error))
    document = _document(options, stream)
    page = markdown(document, (__doc__ or "").partition("\n")[0])
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / _STEM
    stem.with_suffix(".json").write_text(json.dumps(document, allow_nan=False) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(page)
    print(json.dumps(document, allow_nan=False), flush=True)
    return 0


def _document(options: argparse.Namespace, stream: Stream) -> dict[str, Any]:
    spec = _spec(stream, options.width, options.epochs)
    log_progress(f"learning {len(stream.datasets)} datasets")
    learnt = learn_stream(stream.datasets, spec)
    with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as folder:
        found, alone = swaps(learnt, spec, Path(folder))
    following, searching = [], []
    for rows in options.rows:
        log_progress(f"a collection of {rows} rows")
        with tempfile.TemporaryDirectory(prefix="cmcl-bench-") as folder:
            one = measured(rows, options.feature_width, options.width, Path(folder))
        following.append(asdict(one[0]))
        searching.append(asdict(one[1]))
    return {
        "machine": machine(),
        "sizes": {"feature_width": options.feature_width, "width": options.width},
        "swaps": [asdict(each) for each in found],
        "left_alone": [asdict(each) for each in alone],
        "following": following,
        "searching": searching,
    }


def _spec(stream: Stream, width: int, epochs: int | None) -> ModelSpec:
    usual = TrainingSpec()
    training = {
        "batch_size": min(usual.batch_size, stream.fewest_rows),
        "epochs": epochs or usual.epochs,
    }
    return ModelSpec.model_validate(
        {"width": width, "modalities": stream.widths, "training": training}
    )


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.search_follows", description=__doc__)
    parser.add_argument("stream", type=Path, metavar="DIR", help="NN_name_xy.{train,test}.parquet")
    parser.add_argument("--width", type=count, default=256, help="of the embeddings")
    parser.add_argument("--epochs", type=count, help="(default: the product's)")
    parser.add_argument("--rows", type=counts, default=(10_000, 50_000, 100_000, 200_000))
    parser.add_argument("--feature-width", type=count, default=768)
    parser.add_argument("--out", type=Path, default=_RESULTS, help=f"(default: {_RESULTS})")
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
