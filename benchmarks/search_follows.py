"""Does search use a new version after a swap, and what does that cost?

`python -m benchmarks.search_follows DIR` learns a stream, writes its held-out rows to a collection,
and makes each version live in turn; then it indexes and searches collections of growing size.
Store, indexer and indexes are the product's own.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.arguments import OneLineParser, count, counts
from benchmarks.folder import InvalidStream, Stream, read_stream
from benchmarks.progress import log_progress
from benchmarks.reindex import learn_stream
from benchmarks.report import machine
from benchmarks.search.page import markdown
from benchmarks.search.recall import swaps
from benchmarks.search.speed import measured
from cmcl.contract.model import ModelSpec, TrainingSpec

_RESULTS = Path(".cmcl/benchmarks")
_STEM = "search-follows"


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


if __name__ == "__main__":
    sys.exit(main())
