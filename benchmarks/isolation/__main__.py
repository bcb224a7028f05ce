"""Do attacks of one owner affect the work of another?

`python -m benchmarks.isolation` starts the whole local system with keys. One owner, bob, works
steadily: embeddings, searches, reads, writes, and probes like a kubelet's. At the same time attacks
run one after the other from another source address, without a key or with keys of the owner
mallory. Each has a quiet window, the attack, during which bob posts a dataset, and a recovery, which
ends when all is released. A part that kept memory or ended is restarted before the next attack.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.command_line import OneLineParser, add_out, log_progress, publish
from benchmarks.isolation.attacker import AttackFailed, AttackFunction, AttackProcess
from benchmarks.isolation.bystander import RATES, SteadyLoad
from benchmarks.isolation.endpoint_attacks import (
    costly_searches,
    fill_collections,
    idle_connections,
    many_keys_rows,
    nested_json,
    stalled_bodies,
    tiny_chunks,
    unread_embeddings,
    wrong_keys,
)
from benchmarks.isolation.owners import Owners
from benchmarks.isolation.result import Goals, Windows, kept, markdown, missed, processes, requests
from benchmarks.isolation.service_attacks import (
    endless_header,
    endless_heads,
    event_streams,
    half_bodies,
    many_shards,
    metrics_flood,
    minting,
    openapi_flood,
    pipelined_probes,
    stalled_files,
    unfinished_heads,
    unread_errors,
    wide_branches,
    wrong_kinds,
    wrong_shards,
)
from benchmarks.isolation.watch import PROXY, REPLICA, SERVICE, ProcessMonitor
from benchmarks.report import machine
from cmcl.demo.run import read_stream
from cmcl.stack import LocalStack
from cmcl.stack_host import Ports, StackError

_PREPARE_SECONDS = 900.0
_GRACE_SECONDS = 120.0
# Requests after the attack are counted for this long at least.
_LEAST_RECOVERY_SECONDS = 6.0

# Attacks that leave most resources allocated come last.
ATTACKS: Mapping[str, AttackFunction] = {
    each.__name__.replace("_", "-"): each
    for each in (
        endless_heads,
        endless_header,
        unfinished_heads,
        idle_connections,
        wrong_kinds,
        wrong_shards,
        unread_errors,
        stalled_bodies,
        many_keys_rows,
        metrics_flood,
        openapi_flood,
        half_bodies,
        event_streams,
        many_shards,
        stalled_files,
        unread_embeddings,
        nested_json,
        wrong_keys,
        tiny_chunks,
        pipelined_probes,
        costly_searches,
        fill_collections,
        # Before `minting`, which leaves the attacker no room for another model.
        wide_branches,
        minting,
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and write page and document. Return 1 if a goal is missed."""
    options = _parser().parse_args(arguments)
    # Raise, so that context managers stop Ray, which would otherwise outlive this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    document = run(options)
    publish(options, "isolation", markdown(document), document)
    return 1 if any(found["missed"] for found in document["attacks"].values()) else 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Start the system, and run the attacks one after the other."""
    stream = read_stream(options.stream)
    goals = Goals(mib=((SERVICE, 400), (PROXY, 128), (REPLICA, options.replica_mib)))
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="cmcl-isolation-")))
        prefixes = (stream.folder.as_uri(), folder.resolve().as_uri())
        stack = LocalStack(
            *(folder / "stack", Ports.free()),
            ranks=1,
            allowed_prefixes=prefixes,
            keys=True,
            # Both owners' versions must be trained, even on a busy machine.
            extra_environment={"CMCL_MAX_ATTEMPTS": "10"},
        )
        log_progress("starting the local system")
        parts.enter_context(stack)
        owners = Owners(stack, stream, folder / "rows")
        log_progress("both owners train a model")
        owners.settle()
        watch = parts.enter_context(ProcessMonitor(stack))
        steady = parts.enter_context(SteadyLoad(owners.bystander(RATES)))
        trial = _Trial(stack, owners, watch, steady, options, goals)
        try:
            for name in options.attacks:
                found[name] = trial.of(name)
                found[name]["missed"] = missed(found[name], goals)
                log_progress(_line(name, found[name]))
                _restart(stack, owners, watch, found[name]["missed"])
        except StackError as error:
            # Keep the results so far; the remaining attacks count as not tested.
            log_progress(str(error))
            for name in options.attacks:
                found.setdefault(name, {"words": "", "error": str(error), "missed": ["error"]})
    return _document(options, goals, found)


class _Trial:
    """One attack and its measurements."""

    def __init__(
        self,
        stack: LocalStack,
        owners: Owners,
        watch: ProcessMonitor,
        steady: SteadyLoad,
        options: argparse.Namespace,
        goals: Goals,
    ) -> None:
        self._goals = goals
        self._stack = stack
        self._owners = owners
        self._watch = watch
        self._steady = steady
        self._options = options

    def of(self, name: str) -> dict[str, Any]:
        """Run all windows of an attack. An attack that fails to run has an `error`."""
        log_progress(f"{name}: preparing")
        attack, options = ATTACKS[name], self._options
        target = self._owners.target(options.seconds, options.scale)
        words = " ".join((attack.__doc__ or "").split())
        process = AttackProcess(attack, target)
        try:
            process.prepare(_PREPARE_SECONDS)
            with ThreadPoolExecutor(1) as datasets:
                return {"words": words, **self._windows(process, datasets)}
        except AttackFailed as error:
            log_progress(str(error))
            return {"words": words, "error": str(error).strip().splitlines()[-1]}
        finally:
            process.end()

    def _windows(self, process: AttackProcess, datasets: ThreadPoolExecutor) -> dict[str, Any]:
        options = self._options
        self._steady.take()
        begin = time.monotonic()
        time.sleep(options.quiet)
        attack = time.monotonic()
        process.go()
        dataset = datasets.submit(self._owners.learn_another) if options.datasets else None
        process.wait(options.seconds + _GRACE_SECONDS)
        over = time.monotonic()
        end = self._recovered(begin, attack, over)
        found = {
            **requests(self._steady.take(), Windows(begin, attack, over, end)),
            **processes(self._watch.between(begin, attack), self._watch.between(attack, end)),
            "recovery_s": round(end - over, 1),
            "attacker": process.counts(_GRACE_SECONDS),
        }
        found["ended"] = sorted({*found["ended"], *self._stack.ended()})
        return {**found, "dataset": dataset.result()} if dataset else found

    def _recovered(self, begin: float, attack: float, over: float) -> float:
        """Wait until the attack's resources are released, at most for the recovery. Return the time."""
        least = min(_LEAST_RECOVERY_SECONDS, self._options.recovery)
        quiet = self._watch.between(begin, attack)
        while True:
            time.sleep(1)
            now = time.monotonic()
            is_over = now - over >= self._options.recovery
            if is_over or (
                now - over >= least
                and not kept(processes(quiet, self._watch.between(attack, now)), self._goals)
            ):
                return now


def _restart(
    stack: LocalStack, owners: Owners, watch: ProcessMonitor, missed: Sequence[str]
) -> None:
    """Restart parts that kept resources or ended, so that the next attack starts from a clean
    state.

        Raises StackError for parts that cannot be restarted: Ray itself, and the driver of the
        endpoint.
    """
    if lost := set(stack.ended()) - {SERVICE}:
        raise StackError(f"{', '.join(lost)} ended; see {stack.folder / 'logs'}")
    marks = ("end_mib", "descriptors_kept", "ended", "error")
    roles = {each.partition(".")[2] for each in missed if each.partition(".")[0] in marks}
    if "error" in missed:
        roles |= {SERVICE, PROXY, REPLICA}
    if SERVICE in roles:
        log_progress("restarting the service")
        stack.kill(SERVICE)
        stack.start_service()
        stack.wait_for_service()
    for role in roles & {PROXY, REPLICA}:
        log_progress(f"restarting the {role}")
        for process in watch.processes()[role]:
            process.kill()
    if roles:
        owners.wait_until_answered()


def _line(name: str, found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"{name}: {found['error']}"
    return (
        f"{name}: {found['failed']} of {found['requests']} failed, p99 {found['p99_s']} s "
        f"(quiet {found['quiet_p99_s']}), healthz {found['healthz_worst_s']} s, "
        f"MiB {found['peak_mib']}; missed: {', '.join(found['missed']) or 'nothing'}"
    )


def _document(
    options: argparse.Namespace, goals: Goals, found: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    windows = f"{options.quiet:g}, {options.seconds:g}, up to {options.recovery:g}"
    return {
        "attacks": found,
        "goals": asdict(goals),
        "configuration": {
            "quiet, attack and recovery, seconds": windows,
            "requests of the other owner, each second": ", ".join(
                f"{kind} {rate:g}" for kind, rate in RATES.items()
            ),
            "datasets of the other owner": "one during each attack" if options.datasets else "none",
            "connections": f"{options.scale:g} times those in the descriptions",
            "attacker": "on the same machine, one process, source address 127.0.0.2",
        },
        "machine": machine(),
    }


def _attacks(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in ATTACKS:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(ATTACKS)}")
    return names


def _seconds(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not greater than 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.isolation", description=__doc__)
    parser.add_argument(
        "--attacks",
        type=_attacks,
        default=list(ATTACKS),
        metavar="A,B",
        help=f"of {', '.join(ATTACKS)} (default: all)",
    )
    for name, default, words in (
        ("quiet", 5, "before each attack"),
        ("seconds", 10, "of each attack"),
        ("recovery", 60, "after each attack at most; it ends when all is released"),
        ("scale", 1, "factor for the connections of each attack"),
        ("replica-mib", 4096, "memory budget of a replica"),
    ):
        parser.add_argument(
            f"--{name}", type=_seconds, default=default, help=f"{words} (default: {default})"
        )
    parser.add_argument(
        "--no-datasets",
        dest="datasets",
        action="store_false",
        help="bob posts no dataset during each attack",
    )
    parser.add_argument("--stream", type=Path, default=Path("examples/stream"))
    add_out(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
