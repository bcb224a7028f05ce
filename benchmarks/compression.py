"""What shorter vectors, int8 and one bit cost: errors of scores as predicted and as measured, and points of R@10.

    python -m benchmarks.compression examples/stream --json

Learns a stream with the policy improve. Errors are predicted from half of the held-out rows of each dataset, as a
version reports them from all, and measured on every combination of its rows. R@10 is the share of queries whose own row
is among the ten best, both directions averaged: with compressed vectors alone, and where the best 50, or as many as a
collection takes, are scored exactly.

Shapes: N held-out rows, E width of the embeddings.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.chain import Dataset, learn_one, remember
from benchmarks.command_line import OneLineParser, add_out, log_progress, publish, table
from benchmarks.folder import read_stream
from benchmarks.runs import spec_of
from workers.model.heads import ModalityHeads
from workers.nullspace.compression import score_errors
from workers.serve.collections.table import signs
from workers.serve.versions.loading import truncated
from workers.train.certify import PastDataset
from workers.train.evaluation import embeddings
from workers.train.learn import initial_state

BEST, RESCORED = 10, (0, 50, 200)


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn the stream, measure, and return 0."""
    parser = OneLineParser(prog="python -m benchmarks.compression", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="NN_name_xy.{train,test}.parquet")
    parser.add_argument("--width", type=int, default=256, help="of the embeddings (default: 256)")
    add_out(parser)
    options = parser.parse_args(arguments)
    heads, datasets = _learned(options)
    document = measured(heads, datasets)
    publish(options, f"compression-{options.folder.name}", page(document), document)
    return 0


def _learned(options: argparse.Namespace) -> tuple[ModalityHeads, Sequence[Dataset]]:
    stream = read_stream(options.folder)
    spec = spec_of("improve", {"width": options.width, "modalities": stream.widths, "seed": 0})
    state, earlier = initial_state(spec), tuple[PastDataset, ...]()
    for dataset in stream.datasets:
        learned = learn_one(spec, state, dataset, earlier)
        state, earlier = learned.model_state, (*earlier, remember(dataset, learned))
        log_progress(f"{dataset.name} is learned")
    return state.heads, stream.datasets


def measured(heads: ModalityHeads, datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return means over datasets, by how vectors are stored, and the largest miss of a prediction."""
    found: dict[str, list[dict[str, float]]] = {}
    for dataset in datasets:
        sides = embeddings(heads, dataset.pair, dataset.held_out)
        predicted = score_errors(*(side_NE[::2] for side_NE in sides))
        first_NE, second_NE = (side_NE.numpy() for side_NE in sides)
        exact_NN = first_NE @ second_NE.T
        for form, error in predicted.items():
            scores_NN = scores(form, first_NE, second_NE)
            actual = float(np.sqrt(np.mean((scores_NN - exact_NN) ** 2, dtype=np.float64)))
            lost = {
                f"lost_{kept}": 100
                * (_recall(exact_NN, exact_NN, 0) - _recall(scores_NN, exact_NN, kept))
                for kept in RESCORED
            }
            found.setdefault(form, []).append(
                {"predicted": error, "measured": actual, "miss": abs(error / actual - 1), **lost}
            )
    return {
        form: {
            name: (max if name == "miss" else fmean)(each[name] for each in lines)
            for name in lines[0]
        }
        for form, lines in found.items()
    }


def scores(form: str, first_NE: np.ndarray, second_NE: np.ndarray) -> np.ndarray:
    """Return the scores of all combinations of rows (N x N) that are stored like that."""
    if form == "bit":
        one_NE, other_NE = (2.0 * signs(side_NE) - 1 for side_NE in (first_NE, second_NE))
    else:
        one_NE, other_NE = (_stored(form, side_NE) for side_NE in (first_NE, second_NE))
    scores_NN: np.ndarray = one_NE @ other_NE.T
    if form == "bit":
        np.sin(np.pi / 2 * scores_NN / first_NE.shape[1], out=scores_NN)
    return scores_NN


def _stored(form: str, side_NE: np.ndarray) -> np.ndarray:
    if form == "int8":
        step_N1 = np.abs(side_NE).max(axis=1, keepdims=True) / 127
        rounded_NE: np.ndarray = np.round(side_NE / step_N1) * step_N1
        return rounded_NE
    if form == "float16":
        return side_NE.astype(np.float16).astype(np.float32)
    return truncated(side_NE, int(form))


def _recall(scores_NN: np.ndarray, exact_NN: np.ndarray, rescored: int) -> float:
    """The share of rows that are among the ten best of their own query, where so many candidates are scored exactly."""
    shares = []
    for ranked_NN, right_NN in ((scores_NN, exact_NN), (scores_NN.T, exact_NN.T)):
        final_NN = ranked_NN
        if rescored:
            least_N1 = np.sort(ranked_NN, axis=1)[:, -rescored:][:, :1]
            final_NN = np.where(ranked_NN >= least_N1, right_NN, -np.inf)
        own_N1 = np.diagonal(final_NN)[:, None]
        is_found_N = ((final_NN > own_N1).sum(axis=1) < BEST) & np.isfinite(own_N1[:, 0])
        shares.append(float(is_found_N.mean()))
    return fmean(shares)


def page(document: Mapping[str, Mapping[str, float]]) -> str:
    """Return the Markdown page."""
    head = ["stored as", "error of scores, predicted", "measured", "largest miss of a dataset"]
    head += ["R@10 lost, points", *(f"{each} rescored" for each in RESCORED[1:])]
    rows = [
        [
            f"first {form}" if form.isdecimal() else form,
            *(f"{each[name]:.2g}" for name in ("predicted", "measured")),
            f"{100 * each['miss']:.1f} %",
            *(f"{each[f'lost_{kept}']:.2f}" for kept in RESCORED),
        ]
        for form, each in document.items()
    ]
    return f"# Compressed vectors\n\n{table(head, rows)}\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
