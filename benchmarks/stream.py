"""How much does each method learn from a stream, and how much does it forget?

`python -m benchmarks.stream DIR` learns the datasets of a folder in order with every method, and
reports recall at the end, the loss since each dataset was learned, and the drift of scores.
README.md describes the output.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from benchmarks.chain import Outcome
from benchmarks.command_line import RESULTS, OneLineParser, count, counts, log_progress, share
from benchmarks.figures import Figures, chain_figures, joint_figures
from benchmarks.folder import InvalidStream, Source, Stream, read_stream
from benchmarks.joint import JointOutcome
from benchmarks.report import (
    Failure,
    Report,
    document,
    markdown,
    mean_retention,
    print_tables,
)
from benchmarks.runs import Failed, Result, Run, known_methods, perform_all, spec_of
from cmcl.contract.errors import UnknownMethod
from cmcl.contract.model import TrainingSpec
from cmcl.pictures import Memory, MemoryRow, forgetting_matrices
from workers.methods.registry import method_class

_TITLES = {"recall_at_1": "R@1", "recall_at_10": "R@10"}
# Three matrices of ten datasets side by side.
_WIDTH = 1290.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all runs succeeded, 1 if some failed, 2 if the benchmark cannot start."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        stream = _stream(options)
        options.methods = options.methods or known_methods()
        runs = _runs(options, stream)
        out: Path = options.out or RESULTS / stream.name
        out.mkdir(parents=True, exist_ok=True)
    except ValidationError as error:
        parser.error("; ".join(_in_words(detail) for detail in error.errors()))
    except (InvalidStream, OSError) as error:
        parser.error(str(error))
    report = _report(options, stream, runs, _perform(options, stream, runs))
    answer = json.dumps(document(report), allow_nan=False)
    print_tables(report, Console())
    _leave(report, out, answer)
    if options.json:
        print(answer, flush=True)
    return 1 if report.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="NN_name_xy.{train,test}.parquet")
    parser.add_argument(
        "--methods",
        type=_methods,
        metavar="A,B,...",
        help="names, or module:Class for your own method (default: all known names that apply)",
    )
    parser.add_argument(
        "--seeds", type=count, default=3, help="number of seeds, from 0 (default: 3)"
    )
    parser.add_argument("--width", type=int, default=256, help="of the embeddings (default: 256)")
    parser.add_argument("--epochs", type=int, help="of all but joint (default: the product's)")
    parser.add_argument(
        "--joint-epochs",
        type=counts,
        default=(5, 12, 20, 40),
        metavar="A,B,...",
        help="epochs at which joint training is evaluated (default: 5,12,20,40)",
    )
    parser.add_argument("--order", default="forward", help="forward, reversed or shuffled:K")
    parser.add_argument(
        "--cone",
        type=share,
        default=0.0,
        help="add a constant to the features of each encoder, with this share of their squared length",
    )
    parser.add_argument(
        "--tasks",
        type=count,
        default=1,
        help="divide each dataset into so many by class; test rows are of all classes so far",
    )
    parser.add_argument("--name", help="of the stream in the results (default: the folder's)")
    parser.add_argument("--out", type=Path, help=f"for the results (default: {RESULTS}/NAME)")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one document")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=count, default=cores, help="processes (default: cores)")
    return parser


def _methods(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        if ":" in name:
            _check_place(name)
        elif name not in known_methods():
            known = ", ".join(known_methods())
            raise argparse.ArgumentTypeError(
                f"unknown method {name!r}; known are {known}, and module:Class"
            )
    return chosen


def _check_place(place: str) -> None:
    try:
        method_class(place)
    except UnknownMethod as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _source(options: argparse.Namespace) -> Source:
    return options.folder, options.order, options.cone, options.tasks


def _stream(options: argparse.Namespace) -> Stream:
    stream = read_stream(*_source(options))
    for note in stream.notes:
        log_progress(note)
    if options.name is None:
        return stream
    if Path(options.name).name != options.name:
        raise InvalidStream(
            f"name {options.name!r}: it becomes part of file names and must not contain '/'"
        )
    return replace(stream, name=options.name)


def _runs(options: argparse.Namespace, stream: Stream) -> list[Run]:
    """Return runs ordered by seed, so that intermediate results cover all methods."""
    model: dict[str, Any] = {"width": options.width, "modalities": stream.widths}
    # Not of improve, whose polish draws rows from moments.
    training = {"training": _training(options, stream)}
    return [
        Run(
            method,
            spec_of(method, {**model, **(training if method != "improve" else {}), "seed": seed}),
            options.joint_epochs,
        )
        for seed in range(options.seeds)
        for method in options.methods
    ]


def _training(options: argparse.Namespace, stream: Stream) -> dict[str, int]:
    training = {} if options.epochs is None else {"epochs": options.epochs}
    usual, fewest = TrainingSpec().batch_size, stream.fewest_rows
    if fewest < usual:
        log_progress(f"batches have {fewest} rows, not {usual}: the size of the smallest dataset")
        training["batch_size"] = fewest
    return training


def _perform(
    options: argparse.Namespace, stream: Stream, runs: Sequence[Run]
) -> dict[tuple[str, int], Result]:
    """Do all runs, and log each to stderr. Return results by method and seed."""
    results: dict[tuple[str, int], Result] = {}
    jobs = min(options.jobs, len(runs))
    log_progress(f"{len(runs)} runs over {len(stream.datasets)} datasets, {jobs} at a time")
    for run, result in perform_all(stream, _source(options), runs, jobs):
        results[run.method, run.spec.seed] = result
        log_progress(f"[{len(results)}/{len(runs)}] {run}: {_ended(result)}")
    return results


def _ended(result: Result) -> str:
    match result:
        case Failed():
            return f"failed: {result.words}\n{result.trace}"
        case JointOutcome():
            return f"{max(result.seconds.values()):.1f} s"
        case Outcome():
            return f"{result.seconds:.1f} s"


def _report(
    options: argparse.Namespace,
    stream: Stream,
    runs: Sequence[Run],
    results: Mapping[tuple[str, int], Result],
) -> Report:
    """Build the report, in the order of the requested methods."""
    methods, failures = {}, []
    for method in options.methods:
        of_seeds = [results[method, seed] for seed in range(options.seeds)]
        figures = _figures(of_seeds)
        if figures is not None:
            methods[method] = figures
        failures += [
            Failure(method, seed, one.words)
            for seed, one in enumerate(of_seeds)
            if isinstance(one, Failed)
        ]
    return Report(
        stream,
        options.order,
        options.seeds,
        runs[0].spec,
        options.joint_epochs,
        methods,
        failures,
    )


def _figures(of_seeds: Sequence[Result]) -> Figures | None:
    """Return figures over the successful seeds, or None."""
    chains = [one for one in of_seeds if isinstance(one, Outcome)]
    joint = [one for one in of_seeds if isinstance(one, JointOutcome)]
    if chains:
        return chain_figures(chains)
    return joint_figures(joint) if joint else None


def _leave(report: Report, out: Path, answer: str) -> None:
    """Write document, plots and page to `out`."""
    (out / f"{report.stem}.json").write_text(answer + "\n")
    pictures = draw_all(report, out)
    (out / f"{report.stem}.md").write_text(markdown(report, pictures))
    log_progress(f"results are in {out}")


def _in_words(detail: Mapping[str, Any]) -> str:
    """Format one pydantic error, without a whole model as its input."""
    field = ".".join(str(part) for part in detail["loc"]) or "model"
    got = f", got {detail['input']}" if isinstance(detail["input"], int | float | str) else ""
    return f"{field}: {detail['msg']}{got}"


def draw_all(report: Report, folder: Path) -> list[Path]:
    """Draw all pictures. Joint training is left out, because it learns all datasets at once."""
    chains = {name: one for name, one in report.methods.items() if one.epochs is None}
    if not chains:
        return []
    drawn = []
    for metric, title in _TITLES.items():
        panels = memories(chains, metric, report.names)
        kind = metric.replace("_", "-")
        matrices = forgetting_matrices(panels, width=_WIDTH)
        drawn.append(_save(matrices, folder / f"{report.stem}-forgetting-{kind}.svg"))
        curves = mean_retention(panels, title).svg(standalone=True)
        drawn.append(_save(curves, folder / f"{report.stem}-retention-{kind}.svg"))
    return drawn


def memories(
    methods: Mapping[str, Figures], metric: str, datasets: Sequence[str]
) -> dict[str, Memory]:
    """Return the recall of each method, of the datasets learned so far in each version."""
    return {
        name: Memory(
            datasets,
            [
                MemoryRow(t + 1, datasets[t], [*row[: t + 1], *[None] * (len(datasets) - t - 1)])
                for t, row in enumerate(one.matrices[metric])
            ],
            _TITLES[metric],
        )
        for name, one in methods.items()
    }


def _save(svg: str, path: Path) -> Path:
    path.write_text(svg + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
