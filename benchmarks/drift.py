"""Are queries of a dataset that a model has not learned told from those of datasets that it has, and how often by mistake?

`python -m benchmarks.drift DIR ...` leaves each dataset of a stream out in turn. README.md describes the output.
"""

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.folder import read_stream
from benchmarks.report import machine
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from cmcl.storage.local import LocalStore
from workers.model.heads import initial_heads, unit_rows
from workers.nullspace.query_drift import (
    COARSE,
    KnownDataset,
    Reference,
    projected,
    sums_of_halves,
)
from workers.nullspace.threads import one_thread
from workers.serve.batcher import Batcher
from workers.serve.drift import QueryWatch
from workers.serve.telemetry import ServeMetrics
from workers.serve.versions.loading import Float32Array, LoadedHeads, ServedVersion

_WINDOWS = (32, 256)
_SET = (0.01, 0.001)
# Two draws of the same items: parts of one library, molecules of one list. Nothing tells them apart, and nothing should.
_ALIKE = {"04_parts_dt d", "06_parts_vd d", "04_molecules_mt m", "07_molecules_vm m"}
# Of the held-out rows of a known dataset, those nearest to its mean: a narrower stream.
_NARROW = 0.4


@dataclass(frozen=True)
class Side:
    """One modality of a dataset. `rows`, `test`: projections (N × I); `is_second_N`: the half of each row."""

    rows: Tensor
    is_second_N: Tensor
    far_N: Tensor
    test: Tensor

    def known(self, at_B: Tensor) -> KnownDataset:
        """What is kept of some rows."""
        return KnownDataset.from_halves(self.sums(at_B))

    def sums(self, at_B: Tensor) -> Tensor:
        """Sums of some rows, by half."""
        return sums_of_halves(self.rows[at_B], self.is_second_N[at_B])


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    parser = OneLineParser(prog="python -m benchmarks.drift", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a stream")
    parser.add_argument(
        "--windows", type=count, default=100, help="of each kind and case (default: 100)"
    )
    parser.add_argument(
        "--false-alarms", type=count, default=100_000, help="windows to simulate (default: 100,000)"
    )
    parser.add_argument(
        "--requests", type=count, default=10_000, help="of each kind (default: 10,000)"
    )
    add_out(parser)
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    cases: list[dict[str, Any]] = []
    alarms: list[dict[str, Any]] = []
    with one_thread():
        for folder in options.folders:
            sides = {name: each for name, each in _sides(folder).items() if len(each) > 1}
            windows = -(
                -options.false_alarms // len(options.folders) // sum(map(len, sides.values()))
            )
            for modality, known in sides.items():
                for found in chain(
                    _cases(folder.name, modality, known, options.windows, generator),
                    _false_alarms(folder.name, modality, known, windows, generator),
                ):
                    log_progress(json.dumps(found))
                    (alarms if "windows" in found else cases).append(found)
        with tempfile.TemporaryDirectory() as store:
            milliseconds = cost(options.requests, Path(store))
    document = {
        "cases": cases,
        "false_alarms": alarms,
        "milliseconds": milliseconds,
        "machine": machine(),
    }
    publish(options, "drift", _page(document), document)
    return 0


def _sides(folder: Path) -> dict[str, dict[str, Side]]:
    found: dict[str, dict[str, Side]] = {}
    for dataset in read_stream(folder).datasets:
        rows, test = dataset.training, dataset.held_out.rows
        pairs = ((rows.first_NI, test.first_NI), (rows.second_NJ, test.second_NJ))
        for modality, (own, asked) in zip(dataset.pair.modalities, pairs, strict=True):
            unit_NF = unit_rows(own)
            side = Side(
                projected(unit_NF),
                rows.in_second_half_N,
                (unit_NF - unit_NF.mean(0)).square().sum(1),
                projected(unit_rows(asked)),
            )
            found.setdefault(modality, {})[dataset.name] = side
    return found


# --- Seen and unseen ------------------------------------------------------------------------------


def _cases(
    stream: str, modality: str, sides: Mapping[str, Side], windows: int, generator: torch.Generator
) -> Iterator[dict[str, Any]]:
    """One half of the rows of each dataset is learned; windows are of the other half, or of the stream's test rows."""
    learned: dict[str, KnownDataset] = {}
    asked: dict[str, dict[str, Tensor]] = {}
    for name, side in sides.items():
        order = torch.randperm(len(side.rows), generator=generator)
        half = len(order) // 2
        learned[name] = side.known(order[:half])
        others_N = order[half:]
        far_N = side.far_N[others_N]
        near_N = others_N[far_N <= far_N.quantile(_NARROW)]
        asked[name] = {
            "random": side.rows[others_N],
            "unseen": side.test,
            "narrow": side.rows[near_N],
        }
    for name in sides:
        others = [each for each in sides if each != name]
        found: dict[str, Any] = {"stream": stream, "case": f"{name} {modality}"}
        found["alike"] = found["case"] in _ALIKE
        without = Reference([learned[each] for each in others])
        levels = partial(_levels, generator=generator)
        for rows in _WINDOWS:
            for held in ("random", "unseen"):
                new = levels(without, [asked[name][held]], rows, 2 * windows)
                known = [asked[each][held] for each in others]
                single = chain.from_iterable(
                    levels(without, [each], rows, windows) for each in known
                )
                mixed = levels(without, known, rows, windows) if len(known) > 1 else []
                found[f"{held} {rows}"] = auroc(new, [*single, *mixed])
            whole = Reference([learned[name]])
            found[f"narrow {rows}"] = auroc(
                levels(whole, [asked[name]["narrow"]], rows, windows),
                levels(whole, [asked[name]["random"]], rows, windows),
            )
        yield found


def _levels(
    reference: Reference,
    pools: Sequence[Tensor],
    rows: int,
    windows: int,
    generator: torch.Generator,
) -> list[float]:
    """Levels of windows of some rows: of one pool, or of two of them in random shares. A smaller pool is taken whole."""
    levels = []
    for _ in range(windows):
        chosen = torch.randperm(len(pools), generator=generator)[:2].tolist()
        first = rows if len(chosen) == 1 else int(torch.randint(rows + 1, (), generator=generator))
        parts = []
        for place, share in zip(chosen, (first, rows - first), strict=False):
            order = torch.randperm(len(pools[place]), generator=generator)
            parts.append(pools[place][order[:share]])
        window = torch.cat(parts)
        levels.append(reference.deviation(mean_of_projections(window), len(window), _SET[0]).level)
    return levels


def mean_of_projections(rows_BI: Tensor) -> Tensor:
    """The mean (K) of projected rows."""
    return rows_BI[:, :-1].mean(0) * COARSE


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive is above a negative; ties count half."""
    high, low = torch.tensor(positive), torch.tensor(negative)
    above = (high[:, None] > low).double() + (high[:, None] == low).double() / 2
    return float(above.mean())


# --- False alarms ---------------------------------------------------------------------------------


def _false_alarms(
    stream: str, modality: str, sides: Mapping[str, Side], windows: int, generator: torch.Generator
) -> Iterator[dict[str, Any]]:
    """Windows of 256 random rows of a known dataset, of which all other rows are learned."""
    known = {name: side.known(torch.arange(len(side.rows))) for name, side in sides.items()}
    for name, side in sides.items():
        others = [each for one, each in known.items() if one != name]
        total_2II = side.sums(torch.arange(len(side.rows)))
        rows = min(_WINDOWS[-1], len(side.rows) // 3)
        alarms = [0] * len(_SET)
        for _ in range(windows):
            at = torch.randperm(len(side.rows), generator=generator)[:rows]
            rest = KnownDataset.from_halves(total_2II - side.sums(at))
            reference = Reference([*others, rest])
            mean_K = mean_of_projections(side.rows[at])
            for place, probability in enumerate(_SET):
                alarms[place] += reference.deviation(mean_K, rows, probability).level > 1
        yield {
            "stream": stream,
            "case": f"{name} {modality}",
            "windows": windows,
            "factor": known[name].factor,
            "alarms": alarms,
        }


# --- Cost -----------------------------------------------------------------------------------------


def cost(requests: int, folder: Path) -> dict[str, dict[str, float]]:
    """Milliseconds (p50, p99) from the rows of a request to their embeddings, with a watch and without, in turn.

    Of one row and of 32, at width 1,024, one request after the other, which is the highest rate of queries.
    """
    spec = ModelSpec.model_validate({"policy": "improve", "modalities": {"image": 1024, "text": 8}})
    pair = ModalityPair(first="image", second="text")
    heads = LoadedHeads(initial_heads(spec))
    version = ServedVersion("m", 1, spec, heads, datetime.now(UTC), frozenset({pair}))
    batcher, watch, store = Batcher(ServeMetrics()), QueryWatch("a"), LocalStore(folder)
    done = threading.Event()

    def poll() -> None:
        while not done.wait(0.1):
            watch.poll(store)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    found = {}
    for rows in (1, 32):
        rows_BF = np.random.default_rng(0).standard_normal((rows, 1024)).astype(np.float32)
        times = asyncio.run(_in_turn(batcher, watch, version, rows_BF, requests))
        for name, seconds in times.items():
            p50, p99 = np.percentile(seconds, (50, 99)) * 1000
            found[f"{name} {rows}"] = {"p50": float(p50), "p99": float(p99)}
    done.set()
    thread.join()
    return found


async def _in_turn(
    batcher: Batcher,
    watch: QueryWatch,
    version: ServedVersion,
    rows_BF: Float32Array,
    requests: int,
) -> dict[str, list[float]]:
    """Seconds of each request, every second one watched."""
    found: dict[str, list[float]] = {"watched": [], "not": []}
    for _ in range(requests):
        for name, seconds in found.items():
            began = time.perf_counter()
            if name == "watched":
                watch.add(version, "image", rows_BF)
            await batcher.embed(version, "image", rows_BF)
            seconds.append(time.perf_counter() - began)
    return found


# --- The page -------------------------------------------------------------------------------------


def _page(document: Mapping[str, Any]) -> str:
    kinds = [f"{kind} {rows}" for kind in ("random", "unseen", "narrow") for rows in _WINDOWS]
    streams = list(dict.fromkeys(each["stream"] for each in document["cases"]))
    means = []
    for stream in streams:
        for name, alike in (("all", (True, False)), ("that differ", (False,)), ("alike", (True,))):
            chosen = [
                each
                for each in document["cases"]
                if each["stream"] == stream and each["alike"] in alike
            ]
            if chosen:
                numbers = [f"{fmean(each[kind] for each in chosen):.3f}" for kind in kinds]
                means.append([stream, name, len(chosen), *numbers])
    lines = [
        [each["stream"], each["case"], *(f"{each[kind]:.3f}" for kind in kinds)]
        for each in document["cases"]
    ]
    alarms = []
    for stream in streams:
        chosen = [each for each in document["false_alarms"] if each["stream"] == stream]
        total = sum(each["windows"] for each in chosen)
        rates = [
            sum(each["alarms"][place] for each in chosen) / total for place in range(len(_SET))
        ]
        alarms.append(
            [
                stream,
                total,
                *(f"{rate:.5f} ({rate / at:.2f})" for rate, at in zip(rates, _SET, strict=True)),
            ]
        )
    single = [
        [each["stream"], each["case"], f"{each['factor']:.1f}"]
        + [f"{alarm / each['windows']:.5f}" for alarm in each["alarms"]]
        for each in document["false_alarms"]
    ]
    milliseconds = document["milliseconds"]
    costs = []
    for rows in (1, 32):
        watched, without = (milliseconds[f"{name} {rows}"] for name in ("watched", "not"))
        costs += [
            [
                rows,
                key,
                f"{without[key]:.3f}",
                f"{watched[key]:.3f}",
                f"{watched[key] / without[key]:.3f}",
            ]
            for key in ("p50", "p99")
        ]
    set_to = [f"set to {each:g}" for each in _SET]
    parts = [
        "# Drift",
        "## Machine\n" + listed(document["machine"]),
        "## Result",
        table(["stream", "datasets", "cases", *kinds], means),
        table(["stream", "windows", *set_to], alarms),
        table(["rows", "ms", "not watched", "watched", "ratio"], costs),
        table(["stream", "case", *kinds], lines),
        table(["stream", "case", "factor", *set_to], single),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
