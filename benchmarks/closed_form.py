"""What does a version of policy improve cost: its moments, its solution, and what is kept of it?

`python -m benchmarks.closed_form` sums moments of random features as training does, beside the float32 products that
this takes at least, and solves models of six modalities with all fifteen pairs of them, beside a dense eigensolver and
ARPACK on the same matrix. Times do not depend on what the features mean, but on their spectrum, which decays here as
that of real features does. Shapes: N rows, F width of a feature without the constant 1, E width of the embeddings.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import scipy.sparse.linalg as sparse
import torch
from torch import Tensor

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
from benchmarks.report import machine
from benchmarks.update import alternate
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.methods.improve import Improve
from workers.methods.method import TrainingContext
from workers.model.artifact import save_centred_moments, save_memory
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.memory import Memory
from workers.nullspace.centred import Pooled, dataset_moments, pooled
from workers.nullspace.closed_form import root, solve, whitened
from workers.nullspace.moments import pair_moments
from workers.train.learn import moments_of_halves, prepare_rows
from workers.train.rows import CHUNK_ROWS, RowsInMemory
from workers.train.run import Run

_MODALITIES = tuple("abcdef")
# What the rows of a pair have in common, and how fast their spectrum decays.
_SHARED, _DECAY = 300, 0.7
_RIDGE = 0.02
GOAL_SECONDS, GOAL_SHARE = 5.0, 0.7


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the page, and write page and document."""
    options = _parser().parse_args(arguments)
    document = {
        "machine": {**machine(), "threads": torch.get_num_threads()},
        "embedding_width": options.width,
        "moments": [
            _moments(width, lift, options)
            for width in options.features
            for lift in (0, options.lift)
        ],
        "solutions": [
            _solution(width, datasets, options)
            for width in options.features
            for datasets in options.datasets
        ],
        "bytes": [_bytes(width, lift) for width in options.features for lift in (0, options.lift)],
    }
    publish(options.out, "closed-form", markdown(document), document)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.closed_form", description=__doc__)
    parser.add_argument("--features", type=counts, default=(512, 1280, 2048), metavar="F,G,...")
    parser.add_argument("--width", type=count, default=256, help="E (default: 256)")
    parser.add_argument(
        "--lift", type=count, default=1024, help="appended features (default: 1024)"
    )
    parser.add_argument("--datasets", type=counts, default=(15, 60), metavar="A,B,...")
    parser.add_argument("--rows", type=count, default=32_768, help="of moments (default: 32768)")
    parser.add_argument("--repeats", type=count, default=3)
    parser.add_argument(
        "--dense", type=count, default=4096, help="largest matrix for the dense eigensolver"
    )
    add_out(parser)
    return parser


def _features(rows: int, width: int, seed: int) -> Tensor:
    """Unit rows (N × F) whose spectrum decays; rows of two seeds have `_SHARED` numbers in common."""
    shared_NS = torch.randn(rows, _SHARED, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + seed)
    scale_S = torch.arange(1, _SHARED + 1).pow(-_DECAY)
    mixing_SF = torch.randn(_SHARED, width, generator=generator)
    noise_NF = 0.1 * torch.randn(rows, width, generator=generator)
    feature_NF = (shared_NS * scale_S) @ mixing_SF / width**0.5 + noise_NF / width**0.5
    return torch.nn.functional.normalize(feature_NF, dim=1)


def _heads(width: int, lift: int, embedding_width: int) -> ModalityHeads:
    """Heads of two modalities."""
    modalities = {"a": width, "b": width}
    spec = {"width": embedding_width, "modalities": modalities, "lift": lift}
    return initial_heads(ModelSpec.model_validate(spec))


def _moments(width: int, lift: int, options: argparse.Namespace) -> dict[str, float]:
    """A pass over the rows as training makes it, and the products that it takes at least."""
    log_progress(f"moments of width {width}, lift {lift}")
    pair, heads = ModalityPair(first="a", second="b"), _heads(width, lift, options.width)
    keys = torch.arange(options.rows)
    raw = PairedRows(
        _features(options.rows, width, 1), _features(options.rows, width, 2), keys, keys
    )
    prepared = prepare_rows(heads, pair, raw)

    def products() -> None:
        for start in range(0, options.rows, CHUNK_ROWS):
            one, other = (
                side[start : start + CHUNK_ROWS] for side in (prepared.first_NI, prepared.second_NJ)
            )
            for name, rows_NI in (("a", one), ("b", other)):
                if appended := heads.lifts.get(name):
                    rows_NI[:, :width] @ appended.random_FK
            for left_NI, right_NJ in ((one, one), (other, other), (one, other)):
                left_NI.mT @ right_NJ

    tasks = {
        "ours": lambda: moments_of_halves(heads, pair, RowsInMemory(raw), Run()),
        "limit": products,
    }
    found = alternate(tasks, options.repeats)
    ours, limit = found["ours"], found["limit"]
    return {
        "width": width,
        "lift": lift,
        "seconds_per_million_rows": 1e6 / options.rows * statistics.median(ours),
        "share_of_products": statistics.median(b / a for a, b in zip(ours, limit, strict=True)),
    }


def _memory(width: int, datasets: int) -> Memory:
    """Moments of all pairs of the modalities in turn, until there are so many datasets."""
    rows = max(2 * width, 1024)
    sides = {name: _ones(_features(rows, width, i)) for i, name in enumerate(_MODALITIES)}
    summed = {pair: pair_moments(*(sides[name] for name in pair)) for pair in _pairs()}
    memory = Memory()
    for number in range(datasets):
        first, second = _pairs()[number % len(_pairs())]
        pair, sums = ModalityPair(first=first, second=second), summed[first, second]
        memory = memory.with_sums(pair, dataset_moments(sums), {first: _RIDGE, second: _RIDGE})
    return memory


def _pairs() -> list[tuple[str, str]]:
    return list(combinations(_MODALITIES, 2))


def _ones(feature_NF: Tensor) -> Tensor:
    return torch.nn.functional.pad(feature_NF, (0, 1), value=1.0)


def _solution(width: int, datasets: int, options: argparse.Namespace) -> dict[str, float | None]:
    log_progress(f"solution of width {width}, {datasets} datasets")
    memory = _memory(width, datasets)
    spec = ModelSpec(width=options.width, modalities=dict.fromkeys(_MODALITIES, width))
    pair = ModalityPair(first="a", second="b")
    context = TrainingContext(initial_heads(spec), Memory(), {}, pair, spec.training, 0)
    moments = pooled(memory.centred)
    ridges = {name: each.ridge for name, each in memory.ridges.items()}
    directions = _seconds(
        lambda: solve(moments, ridges, options.width, torch.float32), options.repeats
    )
    whole = _seconds(lambda: Improve.from_spec(spec).solve(context, memory), options.repeats)
    return {
        "width": width,
        "datasets": datasets,
        "directions_seconds": statistics.median(directions),
        "seconds": statistics.median(whole),
        **_peers(moments, ridges, options),
    }


def _peers(
    moments: Pooled, ridges: Mapping[str, float], options: argparse.Namespace
) -> dict[str, float | None]:
    """Seconds of libraries for the same directions, from the whitened matrix on; whitening takes the same."""
    names = moments.modalities
    roots = {name: root(moments.covariances[name], ridges[name])[0] for name in names}
    size = sum(map(len, roots.values()))
    matrix_DD = np.zeros((size, size), np.float32)
    place = {
        name: slice(i * size // len(names), (i + 1) * size // len(names))
        for i, name in enumerate(names)
    }
    for (first, second), cross_FG in moments.crosses.items():
        block_FG = whitened(cross_FG, roots[first], roots[second]).float().numpy()
        matrix_DD[place[first], place[second]] = block_FG
        matrix_DD[place[second], place[first]] = block_FG.T
    found: dict[str, float | None] = {"dense_seconds": None}
    if size <= options.dense:
        (found["dense_seconds"],) = _seconds(
            lambda: torch.linalg.eigh(torch.from_numpy(matrix_DD)), 1, warm=False
        )
    (found["arpack_seconds"],) = _seconds(
        lambda: sparse.eigsh(matrix_DD, k=options.width, which="LA", tol=1e-2, v0=np.ones(size)),
        *(1,),
        warm=False,
    )
    return found


def _bytes(width: int, lift: int) -> dict[str, int]:
    """Bytes in object storage: moments of one dataset, and what each version keeps of a pair."""
    log_progress(f"bytes of width {width}, lift {lift}")
    together = width + lift
    rows = torch.nn.functional.normalize(torch.randn(64, together), dim=1)
    sums = dataset_moments(pair_moments(_ones(rows), _ones(rows)))
    pair = ModalityPair(first="a", second="b")
    memory = Memory()
    # Sums over two datasets need float64.
    for each in (sums, dataset_moments(pair_moments(_ones(rows[:32]), _ones(rows[32:])))):
        memory = memory.with_sums(pair, each, {"a": _RIDGE, "b": _RIDGE})
    return {
        "width": width,
        "lift": lift,
        "dataset": len(save_centred_moments(sums)),
        "pair": sum(map(len, save_memory(memory).pooled.values())),
    }


def _seconds(task: Callable[[], object], repeats: int, *, warm: bool = True) -> list[float]:
    found = []
    for turn in range(repeats + warm):
        began = time.perf_counter()
        task()
        if turn >= warm:
            found.append(time.perf_counter() - began)
    return found


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    moments = [
        [
            one["width"],
            one["lift"],
            f"{one['seconds_per_million_rows']:.0f}",
            f"{one['share_of_products']:.2f}",
        ]
        for one in document["moments"]
    ]
    solutions = [
        [
            *(one["width"], one["datasets"]),
            *(
                "–" if one[name] is None else f"{one[name]:.1f}"
                for name in ("directions_seconds", "seconds", "dense_seconds", "arpack_seconds")
            ),
        ]
        for one in document["solutions"]
    ]
    parts = [
        "# Cost of the closed form",
        "## Question\nWhat does a version of policy `improve` cost: its moments, its solution, and what is kept of it?",
        "## Machine\n" + listed(document["machine"]),
        (
            "## Moments\nA pass over a dataset with both sides of that width: unit length, lift, and the "
            "moments of two halves. *Share*: seconds of the float32 products that lift and moments take at least to "
            f"seconds of the pass (goal: {GOAL_SHARE})."
        ),
        table(["width", "lift", "seconds for 10⁶ rows", "share of products"], moments),
        (
            f"## Solution\nSix modalities, fifteen pairs, E = {document['embedding_width']}; seconds. *Directions*: "
            "whitening and eigenvectors. *All*: with polish and alignment. Goal: directions in at most "
            f"{GOAL_SECONDS:g} s at width 1280, and a cost that grows less than the number of datasets. *Dense* and "
            "*ARPACK*: eigenvectors alone, of the whitened matrix, by LAPACK (all of them) and by "
            "`scipy.sparse.linalg.eigsh` to the same tolerance."
        ),
        table(["width", "datasets", "directions", "all", "dense", "ARPACK"], solutions),
        (
            "## Bytes\nIn object storage: the moments of one dataset, those that each version keeps of one pair, and of a "
            "hundred datasets together."
        ),
        table(
            ["width", "lift", "dataset MiB", "pair MiB", "100 datasets GiB"],
            _stored(document["bytes"]),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _stored(measured: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [
            *(one["width"], one["lift"]),
            *(f"{one[name] / 2**20:.1f}" for name in ("dataset", "pair")),
            f"{100 * one['dataset'] / 2**30:.2f}",
        ]
        for one in measured
    ]


if __name__ == "__main__":
    sys.exit(main())
