"""What does protection cost at run time: per update, at the start of a dataset, and for its
moments?

`python -m benchmarks.update` compares the product's masked update with plain training and with the
published order (arXiv 2503.14963), alternating in one process, so that other load on the machine
affects all of them equally. Ratios are medians of the ratios within each round. Data are random
with a decaying spectrum like real features; times do not depend on it. Shapes: B rows of a batch, N
of a dataset, E width of the embeddings, I of what a head reads; E = I.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.command_line import OneLineParser, add_out, count, counts, log_progress, publish
from benchmarks.protected import (
    KEPT_ENERGY,
    PAIR,
    MaskedPair,
    Setting,
    random_setting,
    sealed_bases,
    start_protected,
)
from benchmarks.published import PlainPair, PublishedPair, projections, start_published
from benchmarks.report import machine
from workers.methods.method import TrainingContext
from workers.methods.preserve import Preserve
from workers.model.memory import Memory
from workers.nullspace.moments import pair_moments

Seconds = Mapping[str, Sequence[float]]
"""Seconds of each task, by round."""

_VERSIONS = ("python", "cmcl", "torch", "numpy")
_EARLIER = (1, 10, 100)
_START_ROWS = 2000
# Several small batches are timed together, with about this many rows.
_ROWS_AT_ONCE = 1024
# Rows of the dataset whose moments are summed, per unit of width: 65,536 at 1024.
_MOMENT_ROWS, _PRODUCT_ROWS = 64, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table and write the results."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    answer = measured(options.width, options.batches, options.repeats)
    publish(options.out, f"update-{options.width}", markdown(answer), answer)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.update", description=__doc__)
    parser.add_argument("--width", type=count, default=1024, help="E = I (default: 1024)")
    parser.add_argument("--batches", type=counts, default=(64, 256, 1024, 4096), metavar="A,B,...")
    parser.add_argument("--threads", type=count, help="(default: torch's default)")
    parser.add_argument("--repeats", type=count, default=7, help="rounds after one of warm-up")
    add_out(parser)
    return parser


def measured(width: int, batches: Sequence[int], repeats: int) -> dict[str, Any]:
    """Return the document. Progress is logged to stderr."""
    setting = random_setting(width, max(*batches, _START_ROWS))
    by_batch = {}
    for batch in batches:
        log_progress(f"updates at batch {batch}")
        by_batch[str(batch)] = _updates(setting, batch, repeats)
    log_progress("start of a dataset")
    start = _start(setting, repeats)
    log_progress("moments")
    moments = _moments(width, repeats)
    where = machine()
    versions = {name: where.pop(name) for name in _VERSIONS}
    return {
        "batches": by_batch,
        "start_ms": start,
        "moments_gemm_share": moments["share"],
        "moments": moments,
        "width": width,
        "repeats": repeats,
        "blocked_shares": [round(space.blocked_share, 4) for space in setting.spaces],
        "machine": {**where, "threads": torch.get_num_threads()},
        "versions": versions,
    }


def _updates(setting: Setting, batch: int, repeats: int) -> dict[str, float]:
    """Return milliseconds of one update of each kind, and their ratios."""
    weights, rows, spec = setting.weights, setting.rows, setting.context.training
    first, second = (projections(*both) for both in setting.moments)
    pairs: dict[str, PlainPair | MaskedPair] = {
        "vanilla": PlainPair(weights, rows, spec),
        "masked": MaskedPair(weights, rows, spec, setting.spaces),
        "published": PublishedPair(weights, rows, spec, (first, second)),
    }
    count = max(1, _ROWS_AT_ONCE // batch)
    generator = torch.Generator().manual_seed(batch)
    indices = [torch.randperm(len(rows), generator=generator)[:batch] for _ in range(count)]
    seconds = alternate(
        {name: partial(_update_all, pair, indices) for name, pair in pairs.items()}, repeats
    )
    return {
        **_times(seconds, count),
        **_ratio("masked_to_vanilla", seconds["masked"], seconds["vanilla"]),
        **_ratio("published_to_masked", seconds["published"], seconds["masked"]),
    }


def _update_all(pair: PlainPair | MaskedPair, indices: Sequence[Tensor]) -> None:
    for index_B in indices:
        pair.update(index_B)


def _start(setting: Setting, repeats: int) -> dict[str, Any]:
    """Return milliseconds before the first update: of both heads, and by number of earlier
    datasets.

        Ours: the eigenbasis of the outputs, the masks and the rotation of the rows. The bases of
        the inputs were sealed at the end of their datasets (`seal`: its cost in the earlier job).
        Published: two SVDs and two dense projections per head. Moments are given in both cases. By
        earlier datasets of the same pair: the complete start, including input bases, moments of
        current embeddings and disjoint shares.
    """
    first_NI, second_NI = setting.rows.first_NI[:_START_ROWS], setting.rows.second_NJ[:_START_ROWS]
    contexts = {str(count): _context_after(setting, count) for count in _EARLIER}
    method, sealed = Preserve(KEPT_ENERGY), sealed_bases(setting)
    outputs = [moment for moment, _ in setting.moments]
    seconds = alternate(
        {
            "ours": partial(start_protected, outputs, sealed, (first_NI, second_NI)),
            "seal": partial(sealed_bases, setting),
            "published": partial(start_published, setting.moments),
            **{count: partial(method.update_spaces, one) for count, one in contexts.items()},
        },
        repeats,
    )
    both = {name: seconds[name] for name in ("ours", "published", "seal")}
    medians = {count: _milliseconds(seconds[count]) for count in contexts}
    return {
        **{name.removesuffix("_ms"): value for name, value in _times(both, 1).items()},
        **_ratio("ratio", seconds["published"], seconds["ours"]),
        "per earlier datasets": medians,
    }


def _context_after(setting: Setting, count: int) -> TrainingContext:
    """Return the same context after `count` datasets of the same pair."""
    rows, memory = setting.rows, Memory()
    moments = pair_moments(rows.first_NI, rows.second_NJ)
    for _ in range(count):
        memory = memory.with_dataset(PAIR, moments)
    return replace(setting.context, memory=memory)


def _moments(width: int, repeats: int) -> dict[str, float]:
    """Return the rate of summing a dataset's moments (both sides and the cross moment), and that of
    one matrix product."""
    generator = torch.Generator().manual_seed(width)
    count, few = _MOMENT_ROWS * width, _PRODUCT_ROWS * width
    first, second = (torch.randn(count, width, generator=generator) for _ in range(2))
    chunk = first[:few]
    seconds = alternate(
        {"moments": partial(pair_moments, first, second), "product": lambda: chunk.mT @ chunk},
        repeats,
    )
    operations = 2 * width * width
    of_moments = [3 * count * operations / one for one in seconds["moments"]]
    of_product = [few * operations / one for one in seconds["product"]]
    shares = [ours / peer for ours, peer in zip(of_moments, of_product, strict=True)]
    return {
        "rows": count,
        "gflops": round(statistics.median(of_moments) / 1e9, 1),
        "gemm_gflops": round(statistics.median(of_product) / 1e9, 1),
        "share": round(statistics.median(shares), 3),
    }


def alternate(tasks: Mapping[str, Callable[[], object]], repeats: int) -> Seconds:
    """Return the seconds of each task in each round. Every round runs all tasks; the first one is
    warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def _times(seconds: Seconds, count: int) -> dict[str, float]:
    """Return median and 95th percentile of the time of one of `count` repetitions, in
    milliseconds."""
    medians = {f"{name}_ms": _milliseconds(found) / count for name, found in seconds.items()}
    worst = {
        f"{name}_p95_ms": 1000 * percentile_95(found) / count for name, found in seconds.items()
    }
    return {name: round(value, 3) for name, value in {**medians, **worst}.items()}


def _milliseconds(found: Sequence[float]) -> float:
    return round(1000 * statistics.median(found), 3)


def percentile_95(found: Sequence[float]) -> float:
    """Return the interpolated percentile; with few values it is close to the largest."""
    return float(torch.tensor(found, dtype=torch.float64).quantile(0.95))


def _ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return median and 95th percentile of the ratios within each round."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    return {
        name: round(statistics.median(ratios), 3),
        f"{name}_p95": round(percentile_95(ratios), 3),
    }


def markdown(answer: Mapping[str, Any]) -> str:
    """Render the page."""
    question = (
        "What does protection cost at run time, compared with plain training and the published "
        "order: per update (forward, backward, optimizer), at the start of a dataset, and for its "
        "moments?"
    )
    configuration = {
        "width": f"E = I = {answer['width']}",
        "rounds": f"{answer['repeats']} after one of warm-up; every round alternates between all",
        "figures": "medians; ratios are medians of the ratios within each round",
        "blocked shares of the two heads": answer["blocked_shares"],
    }
    sections = [
        f"# Updates at width {answer['width']}\n\n## Question\n{question}",
        "## Machine\n" + _listed({**answer["machine"], **answer["versions"]}),
        "## Configuration\n" + _listed(configuration),
        "## Result\n" + _update_table(answer["batches"]),
        _start_table(answer["start_ms"]),
        _moments_line(answer["moments"]),
    ]
    return "\n\n".join(sections) + "\n"


def _update_table(batches: Mapping[str, Mapping[str, float]]) -> str:
    kinds = ("vanilla", "masked", "published")
    heading = ["batch", *(f"{kind} ms (p95)" for kind in kinds)]
    heading += ["masked / vanilla", "published / masked"]
    lines = [_row(heading), "|---" * len(heading) + "|"]
    for batch, found in batches.items():
        times = [f"{found[f'{kind}_ms']:.1f} ({found[f'{kind}_p95_ms']:.1f})" for kind in kinds]
        ratios = [f"{found[name]:.2f}" for name in ("masked_to_vanilla", "published_to_masked")]
        lines.append(_row([batch, *times, *ratios]))
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _start_table(start: Mapping[str, Any]) -> str:
    earlier = ", ".join(
        f"{count}: {found:.0f} ms" for count, found in start["per earlier datasets"].items()
    )
    return (
        f"Start of a dataset: {start['ours']:.0f} ms (p95 {start['ours_p95']:.0f}), published "
        f"{start['published']:.0f} ms (p95 {start['published_p95']:.0f}), ratio "
        f"{start['ratio']:.2f}. Sealing the input bases when a dataset ends: {start['seal']:.0f} ms. "
        f"Complete start after earlier datasets of the same pair, by their number: {earlier}."
    )


def _moments_line(moments: Mapping[str, float]) -> str:
    return (
        f"Moments of {moments['rows']} rows: {moments['gflops']:.0f} GFLOP/s, one float32 product "
        f"{moments['gemm_gflops']:.0f} GFLOP/s, share {moments['share']:.2f}."
    )


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


if __name__ == "__main__":
    sys.exit(main())
