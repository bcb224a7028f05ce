"""What does a fault cost, and does the result stay the same?

`python -m benchmarks.training_faults` trains one dataset repeatedly with two ranks on two Ray nodes
of this machine, each time with a different fault, and compares the result with that of a run
without a fault.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, add_out, count, publish
from benchmarks.faults.attempts import Job, Result, Size
from benchmarks.faults.bucket import TcpProxy, bucket
from benchmarks.faults.cases import CASES, PEER_SECONDS, Case
from benchmarks.faults.nodes import Nodes
from benchmarks.faults.trial import Trial
from benchmarks.report import machine
from cmcl.storage.uris import open_store

_CHECKPOINT_SECONDS = 3
_SAME = 1e-5
_UNDISTURBED = Case("nothing", lambda _: 0.0)

_EXPLAINED = (
    "Columns: *resumed*, seconds from the fault to the first update after resuming from a "
    "checkpoint (or, if no rank had to resume, the number of updates until the next report); "
    "*pause*, the longest time without a reported update; *at update*, out of all updates (long "
    "faults use a longer training); *repeated*, updates that were done twice; *attempts*, more "
    "than one if the fault ends the driver and the control plane would submit another; *result*, "
    "compared with a run without a fault."
)


@dataclass(frozen=True)
class Outcome:
    """Effects of a fault, in seconds after it. `resumed` is None if no rank resumed from a
    checkpoint.

        `updates`: of the whole training. `pause`: the longest time without a reported update.
        `updates_after`: updates until the next report, if no rank resumed. `distance`: largest
        difference of the heads from those without a fault; None if they are bit-equal.
    """

    fault: str
    resumed: float | None
    pause: float
    updates_after: int
    at_update: int
    updates: int
    resumed_at: int | None
    repeated: int
    attempts: int
    ranks: int
    distance: float | None

    @property
    def came_in_time(self) -> bool:
        """Whether training was still running when the fault ended."""
        return self.resumed is not None or self.updates_after > 0

    @property
    def is_same(self) -> bool:
        """Whether the result is bit-equal with the same number of ranks, or within 1e-5
        otherwise."""
        return self.distance is None or (self.ranks != 2 and self.distance <= _SAME)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return 1 if a result differs, or if training ended before its fault."""
    options = _parser().parse_args(arguments)
    # Raise, so that context managers stop Ray's nodes, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    size = Size(options.rows, options.epochs)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cmcl-faults-") as folder:
        undisturbed = cache(partial(_undisturbed, Path(folder)))
        usual, seconds = undisturbed(size)
        for name in options.faults:
            of_case = CASES[name].size(size)
            outcomes.append(_outcome(name, Path(folder), of_case, undisturbed(of_case)[0]))
            print(outcomes[-1], file=sys.stderr, flush=True)
            # After each case, because the whole benchmark takes more than a quarter of an hour.
            document = _document(outcomes, size, usual.updates, seconds)
            publish(options, "training-faults", markdown(document), document)
    return 0 if all(each.is_same and each.came_in_time for each in outcomes) else 1


def _document(
    outcomes: Sequence[Outcome], size: Size, updates: int, seconds: float
) -> dict[str, Any]:
    return {
        "outcomes": [
            {**asdict(each), "is_same": each.is_same, "came_in_time": each.came_in_time}
            for each in outcomes
        ],
        "size": asdict(size),
        "updates": updates,
        "seconds": seconds,
        "checkpoint_seconds": _CHECKPOINT_SECONDS,
        "peer_seconds": PEER_SECONDS,
        "machine": machine(),
    }


def _undisturbed(folder: Path, size: Size) -> tuple[Result, float]:
    """Return the result of a job without a fault, and the duration of its training."""
    with _trial(_UNDISTURBED, folder / f"undisturbed-{size.epochs}", size) as trial:
        trial.finish()
        training = [each.at for each in trial.watch.seen if each.done]
        return trial.job.result(trial.attempt), round(training[-1] - training[0], 1)


def _outcome(name: str, folder: Path, size: Size, undisturbed: Result) -> Outcome:
    case = CASES[name]
    with _trial(case, folder / name, size) as trial:
        trial.train_until(case.share)
        moment = case.act(trial)
        trial.finish()
        result, resumed = trial.job.result(trial.attempt), trial.watch.resumed_after(moment)
    before = trial.watch.done_before(moment)
    first = None if resumed is None else resumed.progress.resumed_at or 0
    return Outcome(
        fault=case.fault,
        resumed=None if resumed is None else round(resumed.at - moment, 1),
        pause=round(trial.watch.longest_pause_after(moment), 1),
        updates_after=trial.watch.done_after(moment) if resumed is None else 0,
        at_update=before,
        updates=undisturbed.updates,
        resumed_at=first,
        repeated=0 if first is None else max(0, before - first),
        attempts=trial.attempt,
        ranks=result.ranks,
        distance=None if result.digest == undisturbed.digest else result.distance(undisturbed),
    )


@contextmanager
def _trial(case: Case, folder: Path, size: Size) -> Iterator[Trial]:
    """Create a new cluster and store for each case."""
    folder.mkdir()
    with _store(case, folder) as (uri, environment, proxy):
        job = Job(open_store(uri), "faults", size)
        job.prepare(folder)
        with Nodes(folder / "ray", {**environment, **case.settings}) as nodes:
            trial = Trial(nodes, job, case.ranks, proxy, seconds=300)
            try:
                yield trial
            finally:
                trial.stop()


@contextmanager
def _store(case: Case, folder: Path) -> Iterator[tuple[str, dict[str, str], TcpProxy | None]]:
    """Yield the store's URI, the cluster's environment variables, and the proxy."""
    environment = {"CMCL_CHECKPOINT_SECONDS": str(_CHECKPOINT_SECONDS)}
    if case.store == "file":
        (folder / "store").mkdir()
        yield (folder / "store").as_uri(), environment, None
        return
    with bucket() as (uri, _, proxy):
        yield uri, {**environment, "AWS_ENDPOINT_URL": proxy.url}, proxy


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.training_faults", description=__doc__)
    parser.add_argument(
        "--faults", nargs="+", choices=CASES, default=list(CASES), help="(default: all)"
    )
    parser.add_argument("--rows", type=count, default=20_000, help="(default: 20000)")
    parser.add_argument("--epochs", type=count, default=30, help="(default: 30)")
    add_out(parser)
    return parser


def markdown(document: Mapping[str, Any]) -> str:
    """Render the page."""
    size = document["size"]
    where = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    setting = (
        f"{size['rows']} pairs, {size['epochs']} epochs, batch {size['batch_size']}, two ranks, "
        f"each on its own Ray node on this machine (the head has no CPUs). {document['updates']} "
        f"updates take {document['seconds']:g} s without a fault. Checkpoints are written every "
        f"{document['checkpoint_seconds']} s (default 60), and a rank counts as hung after "
        f"{document['peer_seconds']} s (default 60)."
    )
    lines = [
        "# Faults while training",
        "",
        "What does a fault cost, and does the result stay the same?",
        "",
        f"Machine: {where}.",
        "",
        setting,
        "",
        _EXPLAINED,
        "",
        (
            "| fault | resumed, s | pause, s | at update | from update | repeated | attempts | ranks "
            "at the end | result |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(outcome) for outcome in document["outcomes"]),
    ]
    return "\n".join(lines) + "\n"


def _row(outcome: Mapping[str, Any]) -> str:
    cells = [
        outcome["fault"],
        _resumed(outcome),
        _known(outcome["pause"]),
        f"{outcome['at_update']} of {outcome['updates']}",
        _known(outcome["resumed_at"]),
        *(str(outcome[name]) for name in ("repeated", "attempts", "ranks")),
        _result(outcome),
    ]
    return f"| {' | '.join(cells)} |"


def _resumed(outcome: Mapping[str, Any]) -> str:
    if outcome["resumed"] is None:
        return f"no resume: {outcome['updates_after']} updates"
    return f"{outcome['resumed']:g}"


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _result(outcome: Mapping[str, Any]) -> str:
    if not outcome["came_in_time"]:
        return "**not tested**: training ended before the fault"
    if outcome["distance"] is None:
        return "bit-equal"
    verdict = "the same" if outcome["is_same"] else "**different**"
    return f"{verdict}: {outcome['distance']:.1e} apart"


if __name__ == "__main__":
    sys.exit(main())
