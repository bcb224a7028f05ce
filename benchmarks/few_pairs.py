"""How well are 50 to 2,000 pairs of a dataset learned, compared with methods that are tuned on these pairs?

`python -m benchmarks.few_pairs DIR ...` learns each dataset of the streams by itself. README.md describes the output.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations, product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.chain import Dataset
from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    counts,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.folder import Stream, read_stream
from benchmarks.report import machine
from benchmarks.runs import start_process
from benchmarks.two_views import METHODS, tuned
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.files.shards import Rows
from workers.methods.improve import Improve
from workers.methods.method import TrainingContext
from workers.model.heads import ModalityHeads, PairedRows, initial_heads, with_constant
from workers.model.loss import unit
from workers.model.memory import Memory
from workers.nullspace.conditioning import centring
from workers.nullspace.moments import pair_moments
from workers.nullspace.threads import one_thread
from workers.train.dataset import paired_rows
from workers.train.evaluation import held_out, recall
from workers.train.learn import condition_new_modalities
from workers.train.rows import RowsInMemory
from workers.train.run import Run

IMPROVE = "improve"
ALL_METHODS = (IMPROVE, *METHODS)
_DIGITS_TO_LEARN = 1000
_METRICS = ("recall_at_1", "recall_at_10")


@dataclass(frozen=True)
class Cell:
    """One method on every dataset of a stream, with so many pairs of each; the seed chooses them."""

    stream: str
    pairs: int
    seed: int
    method: str


Measured = list[tuple[float, float]]
"""R@1 and R@10 of each dataset."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    options = _options(arguments)
    cells = [
        Cell(str(folder), pairs, seed, method)
        for folder in options.folders
        for pairs, seed, method in product(options.pairs, range(options.seeds), options.methods)
    ]
    measured = dict(_measured(cells, options.out / "few-pairs.cells.jsonl", options.jobs))
    document = _document({cell: measured[cell] for cell in cells})
    publish(options, "few-pairs", _page(document), document)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m benchmarks.few_pairs", description=__doc__)
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="a stream, or a folder with mfeat-*.csv",
    )
    parser.add_argument(
        "--pairs", type=counts, default=(50, 100, 200, 500, 1000, 2000), metavar="A,B,..."
    )
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument(
        "--methods", type=lambda text: text.split(","), default=ALL_METHODS, metavar="A,B,..."
    )
    parser.add_argument("--jobs", type=count, default=1, help="processes (default: 1)")
    add_out(parser)
    return parser.parse_args(arguments)


def _measured(cells: Sequence[Cell], kept: Path, jobs: int) -> Iterator[tuple[Cell, Measured]]:
    """All cells. Those that an earlier run has left in `kept` are not measured again."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.is_file() else []
    known = {Cell(**line["cell"]): line["recalls"] for line in map(json.loads, lines)}
    yield from ((cell, known[cell]) for cell in cells if cell in known)
    missing = [cell for cell in cells if cell not in known]
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=start_process)
    with kept.open("a") as file, pool if jobs > 1 else one_thread():
        measured = pool.map(measure, missing) if jobs > 1 else map(measure, missing)
        for cell, recalls in zip(missing, measured, strict=True):
            print(json.dumps({"cell": asdict(cell), "recalls": recalls}), file=file, flush=True)
            log_progress(f"{cell}: {fmean(each[0] for each in recalls):.3f}")
            yield cell, recalls


def measure(cell: Cell) -> Measured:
    """Learn and measure the datasets one by one; those with fewer rows have all of theirs."""
    stream, found = read(Path(cell.stream)), []
    for dataset in stream.datasets:
        random = torch.Generator().manual_seed(cell.seed)
        few = dataset.training.at(
            torch.randperm(len(dataset.training), generator=random)[: cell.pairs]
        )
        if cell.method == IMPROVE:
            spec = ModelSpec.model_validate(
                {"policy": IMPROVE, "width": 256, "modalities": stream.widths, "seed": cell.seed}
            )
            embedded = improved(spec, dataset, few)
        else:
            rows = dataset.held_out.rows
            embedded = tuned(cell.method, few)(rows.first_NI, rows.second_NJ)
        result = recall(*embedded, dataset.held_out)
        found.append((result.at_1, result.at_10))
    return found


def improved(spec: ModelSpec, dataset: Dataset, few: PairedRows) -> tuple[Tensor, Tensor]:
    """Embeddings of the held-out rows, by what the product's method solves from a few rows alone.

    In an orthonormal basis of the span of these rows (B × R), which no solution leaves: the same embeddings as those of
    `workers.train.learn`, but for the random rows of the polish, in a tenth of the time.
    """
    pair, rows, method = dataset.pair, dataset.held_out.rows, Improve.from_spec(spec)
    heads = condition_new_modalities(
        spec, initial_heads(spec), pair, RowsInMemory(few), Run(), centring
    )
    sides = [
        _in_their_span(heads.features(name, few_BF), heads.features(name, held_NF))
        for name, few_BF, held_NF in (
            (pair.first, few.first_NI, rows.first_NI),
            (pair.second, few.second_NJ, rows.second_NJ),
        )
    ]
    (first_BR, first_NR), (second_BQ, second_NQ) = sides
    read = PairedRows(first_BR, second_BQ, few.first_keys_N, few.second_keys_N)
    halves = [pair_moments(half.first_NI, half.second_NJ) for half in read.halves()]
    start = ModalityHeads(
        {
            pair.first: torch.zeros(spec.width, first_BR.shape[1]),
            pair.second: torch.zeros(spec.width, second_BQ.shape[1]),
        }
    )
    context = TrainingContext(start, Memory(), {}, pair, spec.training, spec.seed)
    weights = method.solve_first(context, (halves[0], halves[1])).weights
    return unit(first_NR @ weights[pair.first].mT), unit(second_NQ @ weights[pair.second].mT)


def _in_their_span(few_BF: Tensor, held_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Both about the mean of the few rows, in a basis of these, with the constant 1 (B × R and N × R)."""
    mean_F = few_BF.mean(0)
    few_BF, held_NF = few_BF - mean_F, held_NF - mean_F
    if len(few_BF) < few_BF.shape[1]:
        basis_FR = torch.linalg.qr(few_BF.mT).Q
        few_BF, held_NF = few_BF @ basis_FR, held_NF @ basis_FR
    return with_constant(few_BF), with_constant(held_NF)


@cache
def read(folder: Path) -> Stream:
    """A stream, or a dataset for each pair of views."""
    views = sorted(folder.glob("mfeat-*.csv"))
    return _of_views(views) if views else read_stream(folder)


def _of_views(files: Sequence[Path]) -> Stream:
    """The views of 2,000 digits (UCI multiple features): a dataset for each pair of them, half of the digits held out.

    Columns have units of their own, so each is standardised by the digits that are not held out.
    """
    views = {}
    order_N = np.random.default_rng(0).permutation(2 * _DIGITS_TO_LEARN)
    for file in files:
        table_NF = np.loadtxt(file, delimiter=",", skiprows=1)[order_N]
        values_NF, label_N = table_NF[:, :-1], table_NF[:, -1].astype(int).astype(str)
        known_NF = values_NF[:_DIGITS_TO_LEARN]
        views[file.stem.removeprefix("mfeat-")] = (
            (values_NF - known_NF.mean(0)) / known_NF.std(0)
        ).astype(np.float32)
    few, held = slice(None, _DIGITS_TO_LEARN), slice(_DIGITS_TO_LEARN, None)
    datasets = tuple(
        Dataset(
            f"{one}-{other}",
            ModalityPair(first=one, second=other),
            paired_rows(Rows(views[one][few], views[other][few], None)),
            held_out(Rows(views[one][held], views[other][held], label_N[held])),
        )
        for one, other in combinations(views, 2)
    )
    return Stream("digits", datasets, {name: values.shape[1] for name, values in views.items()})


def _document(found: Mapping[Cell, Measured]) -> dict[str, Any]:
    """By stream, number of pairs and method: mean and deviation over seeds of R@1 and R@10, equal weight for all datasets."""
    streams: dict[str, Any] = {}
    for cell in found:
        by_pairs = streams.setdefault(Path(cell.stream).name, {})
        runs = [
            recalls for other, recalls in found.items() if replace(other, seed=cell.seed) == cell
        ]
        by_pairs.setdefault(str(cell.pairs), {})[cell.method] = {
            metric: _spread([fmean(one[place] for one in recalls) for recalls in runs])
            for place, metric in enumerate(_METRICS)
        }
    return {"streams": streams, "machine": machine()}


def _spread(means: Sequence[float]) -> dict[str, float]:
    return {
        "mean": fmean(means),
        "std": stdev(means) if len(means) > 1 else 0.0,
        "seeds": len(means),
    }


def _page(document: Mapping[str, Any]) -> str:
    tables = [
        f"### {name}\n"
        + table(["pairs", *ALL_METHODS], [[pairs, *_row(each)] for pairs, each in by_pairs.items()])
        for name, by_pairs in document["streams"].items()
    ]
    return (
        "\n\n".join(
            ["# Few pairs", "## Machine\n" + listed(document["machine"]), "## Result", *tables]
        )
        + "\n"
    )


def _row(by_method: Mapping[str, Any]) -> list[str]:
    """R@1 / R@10 of each method in points, the best ones bold."""
    best = {metric: max(each[metric]["mean"] for each in by_method.values()) for metric in _METRICS}

    def cell(found: Mapping[str, Any]) -> str:
        values = []
        for metric in _METRICS:
            mean, std = found[metric]["mean"], found[metric]["std"]
            text = f"{100 * mean:.1f} ± {100 * std:.1f}"
            values.append(f"**{text}**" if mean == best[metric] else text)
        return " / ".join(values)

    return [cell(by_method[name]) if name in by_method else "" for name in ALL_METHODS]


if __name__ == "__main__":
    sys.exit(main())
