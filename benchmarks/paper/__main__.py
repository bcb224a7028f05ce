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

from benchmarks.command_line import log_progress
from benchmarks.paper.caches import read_caches
from benchmarks.paper.cells import run_all
from benchmarks.paper.families import ChosenEncoder, choose_encoder
from benchmarks.paper.features import write_features
from benchmarks.paper.gather import FeatureFile, bar, described, gather, read_sources
from benchmarks.paper.options import TINY_WIDTH, given_of, parser, resolved
from benchmarks.paper.prepare import Workplace
from benchmarks.paper.protocol import STEPS, Origin, deviations
from benchmarks.paper.report import Report, last_line, leave, print_tables
from benchmarks.paper.results import Cell, CellResult
from benchmarks.paper.sources import SOURCES
from benchmarks.paper.sources.source import InvalidSource
from benchmarks.paper.synthetic import PREFIX, write_synthetic
from benchmarks.paper.tiny import write_tiny
from cmcl.storage.local import LocalStore


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 if all runs succeeded, 1 if some failed, 2 if it cannot start."""
    made = parser(__doc__)
    options = resolved(made.parse_args(arguments), made)
    try:
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
    rows = read_sources(options.root, options.sources, partial=options.partial)
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
            files = gather(chosen, specs, options.root, rows, work)
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
    for name in options.encoder:
        chosen = choose_encoder(name, options.width)
        chosen = ChosenEncoder(PREFIX + chosen.family.name, chosen.width)
        write = partial(write_synthetic, options.work / "synthetic", chosen, options.sources)
        files = [write(options.synthetic, seed) for seed in range(options.seeds)]
        report.add(chosen.name, _train(options, chosen, files))


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
