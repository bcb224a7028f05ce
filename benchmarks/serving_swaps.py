"""What do two hundred swaps under load cost, and do clients notice any of them?

`python -m benchmarks.serving_swaps`: two replicas behind HAProxy, clients without a pause, and a
pointer that moves every half second. `--minutes` runs for that time instead: the soak.
"""

import argparse
import math
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import OneLineParser, add_out, count, log_progress, publish
from benchmarks.endpoint.load import Answers, ClientProcess, Load
from benchmarks.endpoint.messages import FORMS, Array, Expected, Form, feature_request, features
from benchmarks.endpoint.serve_stack import EndpointStack
from benchmarks.endpoint.stored import MODALITY, MODEL, heads_of, store_version
from benchmarks.report import machine
from benchmarks.swaps import figures
from benchmarks.swaps.memory import Memory, slope
from benchmarks.swaps.mover import Move, Mover, order
from benchmarks.swaps.page import markdown
from cmcl.contract.version import LivePointer
from cmcl.storage.uris import open_store
from cmcl.storage.versions import write_live

_REQUESTS = 8
_SETTLED = 50
# After a swap, when its memory has been freed.
_QUIET_SECONDS = 2.0
# A replica grows by 10 MiB in the first two and a half minutes of requests, with and without swaps
# (docs/log.md); growth by swaps is visible only after that.
_WARM_UP_SECONDS = 150.0
# A hanging request must time out and count as failed while answers are still recorded.
_TIMEOUT_SECONDS = 10.0
_GOALS = {"ratio": 1.2, "everywhere": 250}


@dataclass(frozen=True)
class Run:
    """Recorded data. `begin` and `end` of the evaluated time, by time.time().

    `rounds`: sequences of swaps, with steady time before, between and after them.
    """

    answers: Answers
    rounds: list[list[Move]]
    memory: Memory
    begin: float
    end: float

    @property
    def moves(self) -> list[Move]:
        """All swaps in order."""
        return [move for round_ in self.rounds for move in round_]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if a request failed, a response did not match its version, or a
    swap did not end."""
    options = _parser().parse_args(arguments)
    # Raise, so that context managers stop Ray, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="cmcl-swaps-") as folder, ClientProcess() as clients:
        run = _run(options, Path(folder), clients)
    document = _document(options, run)
    publish(options, "serving-swaps", markdown(document), document)
    never = document["swap_times"]["all"]["never"]
    return 1 if document["failed"] or document["wrong"] or never else 0


def _run(options: argparse.Namespace, folder: Path, clients: ClientProcess) -> Run:
    rows_RBF = features(_REQUESTS, options.rows, options.width)
    with EndpointStack(folder / "ours", replicas=options.replicas) as ours:
        store = open_store(ours.store_uri)
        log_progress(f"storing {options.versions} versions")
        for version in range(1, options.versions + 1):
            store_version(store, version, options.width)
        write_live(store, MODEL, LivePointer(generation=1, version=1))
        ours.wait_for_version(1, options.width)
        mover = Mover(store, ours.address)
        requests = [
            feature_request(ours.address, options.form, rows_BF, model=MODEL, modality=MODALITY)
            for rows_BF in rows_RBF
        ]
        timeout = min(_TIMEOUT_SECONDS, options.steady / 2)
        load = Load(
            *(ours.address, requests, options.clients, 24 * 3600),
            check_each=True,
            timeout=timeout,
        )
        with Memory(ours.replicas()) as memory:
            clients.begin(load, _expected(options, rows_RBF))
            time.sleep(options.warm_up)
            begin = time.time()
            time.sleep(options.steady)
            rounds = []
            for round_ in _rounds(options, mover):
                rounds.append(round_)
                log_progress(f"{sum(map(len, rounds))} swaps")
                time.sleep(options.steady)
            end = time.time()
            answers = clients.end()
        mover.close()
    return Run(answers, rounds, memory, begin, end)


def _rounds(options: argparse.Namespace, mover: Mover) -> Iterator[list[Move]]:
    """Swap at an even rate. A late swap does not shorten the pause before the next one."""
    versions, done = order(options.versions), 0
    end = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    while time.monotonic() < end and (options.minutes or done < options.swaps):
        size = options.round if options.minutes else min(options.round, options.swaps - done)
        yield [_one(options, mover, *next(versions)) for _ in range(size)]
        done += size


def _one(options: argparse.Namespace, mover: Mover, version: int, is_rollback: bool) -> Move:
    next_one = time.monotonic() + options.pause
    move = mover.move(version, is_rollback=is_rollback)
    time.sleep(max(0.0, next_one - time.monotonic()))
    return move


@torch.inference_mode()
def _expected(options: argparse.Namespace, rows_RBF: Array) -> Expected:
    found = {}
    for version in range(1, options.versions + 1):
        heads = heads_of(version, options.width)
        embedded = [heads.embed(MODALITY, torch.from_numpy(rows)).numpy() for rows in rows_RBF]
        found[version] = np.stack(embedded)
    form: Form = options.form
    return Expected(form, found)


def _document(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    spans = [(round_[0].at, round_[-1].at + options.pause) for round_ in run.rounds]
    swaps = figures.followed(run.moves, run.answers, spans[-1][1])
    steady, swapping = figures.parted(run.answers, spans, run.begin, run.end)
    ratios = [
        figures.latency(within)["p99"] / figures.latency(np.concatenate(around))["p99"]
        for within, around in zip(swapping, pairwise(steady), strict=True)
    ]
    latency = {
        "steady": figures.latency(np.concatenate(steady)),
        "swapping": figures.latency(np.concatenate(swapping)),
        "in a swap": figures.latency(figures.during(run.answers, swaps)),
    }
    times = {
        "all": figures.swap_times(swaps),
        "from the store": figures.swap_times([s for s in swaps if not s.move.is_rollback]),
        "roll backs": figures.swap_times([s for s in swaps if s.move.is_rollback]),
    }
    # Of all answers, including warm-up: no request may fail at any time.
    failed, wrong = figures.failures(run.answers), figures.wrong(run.answers)
    memory = _memory(run)
    ratio = latency["swapping"]["p99"] / latency["steady"]["p99"]
    return {
        "goals": [
            {"what": "failed requests", "measured": sum(failed.values()), "goal": 0},
            {"what": "answers not of their version", "measured": wrong, "goal": 0},
            {"what": "swaps never seen everywhere", "measured": times["all"]["never"], "goal": 0},
            _goal("p99 swapping / steady", ratio, f"at most {_GOALS['ratio']}"),
            _goal("the same in the best round", min(ratios), ""),
            _goal("the same in the worst round", max(ratios), ""),
            *_times_goals(times["all"]),
            *_memory_goal(memory),
        ],
        "failed": failed,
        "wrong": wrong,
        "latency": latency,
        "swap_times": times,
        "swaps": [{**asdict(swap.move), "everywhere": swap.everywhere} for swap in swaps],
        "memory": memory,
        "configuration": _configuration(options, run),
        "machine": machine(),
    }


def _goal(what: str, measured: float, goal: str) -> dict[str, Any]:
    return {"what": what, "measured": round(measured, 2), "goal": goal}


def _times_goals(times: dict[str, float]) -> list[dict[str, Any]]:
    """Return the goals of swap times, or none if no swap ended."""
    if "p95" not in times:
        return []
    return [
        _goal("everywhere, p95, ms", times["p95"], f"at most {_GOALS['everywhere']}"),
        _goal("everywhere, slowest, ms", times["most"], ""),
    ]


def _memory_goal(memory: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goal for the replica that grows most, or none with too few swaps."""
    slopes = [one["slope"] for one in memory if one["slope"] is not None]
    if not slopes:
        return []
    least = max(slope["value"] - slope["half_width"] for slope in slopes)
    return [_goal("memory, MiB per 100 swaps after the 50th, at least", least, "at most 0")]


def _memory(run: Run) -> list[dict[str, Any]]:
    """Return memory of each replica before the first swap, after the fiftieth and at the end, and
    the slope.

        Only samples between rounds count, because a replica that loads a version holds its file as
        well.
    """
    moves, times = np.array([swap.at for swap in run.moves]), np.array(run.memory.times)
    done = np.searchsorted(moves, times)
    quiet = times - np.concatenate([[-math.inf], moves])[done] > _QUIET_SECONDS
    settled = quiet & (done >= min(_SETTLED, len(moves) // 2))
    found = []
    for mebibytes in run.memory.mebibytes.values():
        looks = np.array(mebibytes)
        trend = slope(done[settled].tolist(), looks[settled].tolist())
        found.append(
            {
                "at_first": float(looks[done == 0][-1]),
                "at_50": float(looks[settled][0]),
                "at_end": float(looks[-1]),
                "slope": None if trend is None else asdict(trend),
            }
        )
    return found


def _configuration(options: argparse.Namespace, run: Run) -> dict[str, Any]:
    return {
        "width": f"F = E = {options.width}, conditioned heads, two modalities",
        "replicas": options.replicas,
        "clients": f"{options.clients}, each {options.rows} rows a request, {options.form}",
        "swaps": f"{len(run.moves)} of {options.versions} versions, every {options.pause:g} s",
        "rounds": f"{options.round} swaps, then {options.steady:g} s without any, and so on",
        "warm-up": f"{options.warm_up:g} s",
        "seed": 0,
    }


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.serving_swaps", description=__doc__)
    parser.add_argument("--swaps", type=count, default=200, help="(default: 200)")
    parser.add_argument("--minutes", type=float, help="swap for this time instead: the soak")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between swaps")
    parser.add_argument("--round", type=count, default=20, help="swaps per round (default: 20)")
    parser.add_argument("--steady", type=float, default=6, help="seconds between rounds")
    parser.add_argument("--warm-up", type=float, default=_WARM_UP_SECONDS, help="seconds (150)")
    parser.add_argument(
        "--versions", type=count, default=12, help="number of versions (default: 12)"
    )
    parser.add_argument("--replicas", type=count, default=2, help="(default: 2)")
    parser.add_argument("--clients", type=count, default=4, help="(default: 4)")
    parser.add_argument("--rows", type=count, default=8, help="per request (default: 8)")
    parser.add_argument("--form", choices=FORMS, default="binary", help="(default: binary)")
    parser.add_argument("--width", type=count, default=1024, help="F = E (default: 1024)")
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
