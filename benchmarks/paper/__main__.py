"""Run the experiments of "Continual Multimodal Contrastive Learning" (arXiv 2503.14963), as reconstructed.

Checks what was downloaded, encodes it, trains every method on the eleven steps, and prints the paper's table
beside ours. Results are kept: the same command continues where it stopped. docs/reproducing.md explains it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import log_progress
from benchmarks.paper.caches import read_caches
from benchmarks.paper.cells import least_seconds, run_all
from benchmarks.paper.ctvr import PUBLISHED, mean_figures, read_tasks, run_method
from benchmarks.paper.families import ChosenEncoder, choose_encoder
from benchmarks.paper.features import write_features
from benchmarks.paper.gather import FeatureFile, Limits, bar, described, gather, read_sources
from benchmarks.paper.options import TINY_WIDTH, given_of, parser, resolved
from benchmarks.paper.prepare import Workplace
from benchmarks.paper.protocol import STEPS, Origin, deviations
from benchmarks.paper.report import Report, failures_of, last_line, leave, print_tables
from benchmarks.paper.results import Cell, CellResult
from benchmarks.paper.sources import SOURCES
from benchmarks.paper.sources.source import InvalidSource
from benchmarks.paper.synthetic import (
    FEWEST,
    PREFIX,
    time_model,
    training_rows,
    write_synthetic,
)
from benchmarks.paper.tiny import write_tiny
from benchmarks.runs import JOINT_SETTINGS
from cmcl.contract.errors import NothingToLearn, TrainingDiverged
from cmcl.pictures import duration
from cmcl.storage.local import LocalStore


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all runs succeeded, 1 if some failed, 2 if it cannot start."""
    made = parser(__doc__)
    options = resolved(made.parse_args(arguments), made)
    try:
        if options.protocol != "paper":
            return _run_ctvr(options)
        report = _run(options)
    except (InvalidSource, OSError, ValidationError) as error:
        lines = str(error).splitlines()
        made.exit(2, "".join(f"benchmarks.paper: {line}\n" for line in lines))
    if report is None:
        return 0
    print_tables(report, Console(stderr=options.json))
    out: Path = options.out or options.work / "results"
    leave(report, out)
    for failure in report.failures:
        log_progress(f"failed: {failure}")
    log_progress(f"page, pictures and document are in {out}")
    if options.json:
        print(json.dumps(last_line(report), allow_nan=False), flush=True)
    return 1 if report.failures else 0


def _run_ctvr(options: argparse.Namespace) -> int:
    """The second protocol: a table, and one document."""
    setup = options.protocol.removeprefix("ctvr-")
    tasks = read_tasks(options.root, setup)
    given = {"epochs": options.epochs, "batch_size": options.batch_size}
    training = {name: value for name, value in given.items() if value is not None}
    methods = {}
    shown = Table(title=f"CTVR, {setup}, seeds: {options.seeds}")
    for heading in (
        "method",
        "R@1",
        "R@5",
        "R@10",
        "forgetting",
        "R@1, indexed again",
        "published",
    ):
        shown.add_column(heading)
    status = 0
    for name in [each for each in options.methods if each not in JOINT_SETTINGS]:
        try:
            found = [
                run_method(tasks, name, {"training": training, "seed": seed})
                for seed in range(options.seeds)
            ]
        except (ArithmeticError, TrainingDiverged, NothingToLearn) as error:
            log_progress(f"failed: {name}: {error}")
            status = 1
            continue
        figures = mean_figures(found)
        methods[name] = figures
        log_progress(f"{name}: {figures['seconds']:.1f} s")
        known = PUBLISHED[setup].get(name)
        beside = f"{known[0]:.2f}, {known[1]:.2f}" if known else ""
        values = [f"{100 * value:.2f}" for key, value in figures.items() if key != "seconds"]
        shown.add_row(name, *values, beside)
    Console(stderr=options.json, width=120).print(shown)
    if options.json:
        print(json.dumps({"protocol": options.protocol, "tasks": len(tasks), "methods": methods}))
    return status


def _run(options: argparse.Namespace) -> Report | None:
    """Run everything that the options ask for; None after `--check`."""
    steps = [step.name for step in STEPS if step.source in options.sources]
    origin: Origin = "encoded" if options.caches is None else "imported"
    known = deviations(options.preset, origin if options.synthetic is None else "synthetic")
    report = Report(options.preset, options.seeds, steps, known, _notes(options))
    if options.synthetic is not None:
        _run_synthetic(options, report)
    elif options.caches is not None:
        for name in options.encoder:
            chosen = choose_encoder(name)
            files = _imported(options, chosen)
            report.add(name, _train(options, chosen, [files] * options.seeds))
    else:
        return _run_sources(options, report)
    return report


def _run_sources(options: argparse.Namespace, report: Report) -> Report | None:
    if options.tiny:
        write_tiny(options.root)
    limits = Limits(options.partial, options.longest_hours)
    rows = read_sources(options.root, options.sources, limits)
    if options.check:
        for name, of_source in rows.items():
            counts = ", ".join(f"{len(part)} {split}" for split, part in of_source.items())
            log_progress(f"{name}: {counts} rows; licence: {SOURCES[name].licence}")
        return None
    store = LocalStore(options.work / "store")
    with closing(Workplace(options.work, store, options.max_bad_share)) as work:
        for name in options.encoder:
            chosen = choose_encoder(name, TINY_WIDTH if options.tiny else None)
            if not chosen.is_fake:
                log_progress(f"{name}: {chosen.family.licence}")
            specs = chosen.specs(given_of(options, name))
            files = gather(chosen, specs, options.root, rows, work, limits)
            report.add(name, _train(options, chosen, [files] * options.seeds))
    return report


def _imported(options: argparse.Namespace, chosen: ChosenEncoder) -> list[FeatureFile]:
    """The authors' caches as files of features."""
    files = []
    for name in options.sources:
        path = options.work / "features" / f"{chosen.name}-cached" / f"{name}.npz"
        write_features(path, read_caches(options.caches, name, chosen))
        files.append(described(name, path))
    return files


def _run_synthetic(options: argparse.Namespace, report: Report) -> None:
    """Train on the whole share, and with one seed on half of it, which only the model of the time needs."""
    shares = (options.synthetic / 2, options.synthetic, 1.0)
    fewer, more, every = (training_rows(options.sources, share) for share in shares)
    if fewer == more:
        raise InvalidSource(
            f"--synthetic {options.synthetic:g} has {more} rows, and so has half of it: no source gets fewer than "
            f"{FEWEST}. The model of the time needs two numbers of rows: use a larger share"
        )
    for name in options.encoder:
        chosen = choose_encoder(name, options.width)
        chosen = ChosenEncoder(PREFIX + chosen.family.name, chosen.width)
        write = partial(write_synthetic, options.work / "synthetic", chosen, options.sources)
        whole = _train(options, chosen, [write(shares[1], seed) for seed in range(options.seeds)])
        report.add(chosen.name, whole)
        half = _train(options, chosen, [write(shares[0], 0)])
        report.failures += failures_of(half)
        seconds = (_seconds(half), _seconds(whole))
        report.times[chosen.name] = time_model(seconds, (fewer, more, every))


def _seconds(results: dict[Cell, CellResult]) -> dict[str, float]:
    """Those of each method with seed 0, the one seed that half of the rows is trained with, too."""
    return {
        cell.method: result.seconds
        for cell, result in results.items()
        if cell.seed == 0 and not result.error
    }


def _notes(options: argparse.Namespace) -> list[str]:
    notes = []
    if any(name.startswith("fake-") for name in options.encoder):
        notes.append(
            "The encoders are stand-ins (`fake-`): random projections of what is decoded. The figures say that "
            "everything runs, and nothing about the encoders."
        )
    if options.tiny:
        notes.append(
            f"Tiny run: generated files, heads of width {TINY_WIDTH}, {options.epochs} epochs, no lift. Nothing "
            "here is comparable with the published table."
        )
    if options.synthetic is not None:
        notes.append(
            f"Synthetic features with {100 * options.synthetic:g} % of the paper's rows. Figures compare methods on "
            "this stand-in, and say nothing about real encoders."
        )
    if len(options.sources) < len(SOURCES):
        notes.append(
            f"Only {', '.join(options.sources)}: means are over fewer steps than published."
        )
    return notes


def _train(
    options: argparse.Namespace, chosen: ChosenEncoder, files: Sequence[Sequence[FeatureFile]]
) -> dict[Cell, CellResult]:
    """All cells of an encoder, with the files of each seed. By seed first, so that what is there early covers all
    methods."""
    given = {"epochs": options.epochs, "batch_size": options.batch_size}
    training = tuple((name, value) for name, value in given.items() if value is not None)
    cells = [
        Cell(
            chosen.name,
            chosen.family.name,
            chosen.width,
            method,
            seed,
            options.preset,
            tuple(of_seed),
            training,
            options.joint_epochs,
            lift=0 if options.tiny else None,
        )
        for seed, of_seed in enumerate(files)
        for method in options.methods
    ]
    results = {}
    seconds = least_seconds(cells, options.work / "cells") / options.jobs
    log_progress(
        f"{chosen.name}: training takes {duration(seconds)} at least, with {options.jobs} jobs"
    )
    with bar() as progress:
        task = progress.add_task(f"{chosen.name}: training", total=len(cells))
        for cell, result in run_all(cells, options.work / "cells", options.jobs):
            results[cell] = result
            progress.advance(task)
            how = f"failed: {result.error}" if result.error else f"{result.seconds:.1f} s"
            log_progress(f"[{len(results)}/{len(cells)}] {cell}: {how}")
    return {cell: results[cell] for cell in cells}


if __name__ == "__main__":
    sys.exit(main())
