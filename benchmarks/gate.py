"""Does a gate that sets itself hold bad datasets, and no others?

`python -m benchmarks.gate DIR ...` learns two thirds of the rows of each dataset of a stream in order, then posts the rest
of each as a batch: as it is, and spoilt in five ways. README.md describes the output.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.chain import Dataset, learn_one, remember
from benchmarks.command_line import (
    OneLineParser,
    add_out,
    count,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.folder import Stream, read_stream
from benchmarks.report import machine
from cmcl.contract.errors import NothingToLearn
from cmcl.contract.modality import FileEntry
from cmcl.contract.model import Gate, ModelSpec
from cmcl.contract.version import Agreement, Halves, LearnedDataset, VersionManifest, VersionReport
from service.jobs.gate import bounds
from workers.methods.registry import method_for
from workers.model.heads import PairedRows, unit_rows
from workers.nullspace.centred import CentredMoments, dataset_moments
from workers.nullspace.moments import PairMoments
from workers.nullspace.threads import one_thread
from workers.train.agreement import agreement, comparable, halves_of
from workers.train.certify import PastDataset, certificates
from workers.train.evaluation import Evaluation, overlaps
from workers.train.learn import ModelState, TrainingResult, initial_state, moments_of_halves
from workers.train.rows import RowsInMemory
from workers.train.run import Run

KINDS = ("as it is", "5 % shuffled", "20 % shuffled", "50 % shuffled", "wrong encoder", "one class")
_AUTO = Gate(bounds="auto")
_SHOWN = ("min_backward_transfer", "min_overlap")
_NOWHERE = FileEntry(bytes=0, sha256="0" * 64)


@dataclass(frozen=True)
class Model:
    """A version in memory: what the next one is judged with."""

    spec: ModelSpec
    state: ModelState
    lines: tuple[LearnedDataset, ...] = ()
    past: tuple[PastDataset, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    sums: Mapping[str, CentredMoments] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    parser = OneLineParser(prog="python -m benchmarks.gate", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a stream")
    parser.add_argument("--lift", type=count, help="random features (default: the product's)")
    add_out(parser)
    options = parser.parse_args(arguments)
    steps, batches = list[dict[str, Any]](), list[dict[str, Any]]()
    with one_thread():
        for folder in options.folders:
            for found in judged(folder, options.lift):
                log_progress(json.dumps(found))
                (steps if found["kind"] == "step" else batches).append(found)
    document = {"steps": steps, "batches": batches, "lift": options.lift, "machine": machine()}
    publish(options, "gate", _page(document), document)
    return 0


def judged(folder: Path, lift: int | None) -> Iterator[dict[str, Any]]:
    """Yield what the gate says of each step, and of each batch."""
    stream = read_stream(folder)
    spec = ModelSpec.model_validate(
        {
            "policy": "improve",
            "modalities": stream.widths,
            **({} if lift is None else {"lift": lift}),
        }
    )
    model, batches = Model(spec, initial_state(spec)), list[tuple[Dataset, Tensor]]()
    for dataset in stream.datasets:
        learned, rest = _divided(folder, dataset)
        batches.append(rest)
        model, candidate = learn(model, learned)
        yield _found(stream, dataset.name, "step", candidate)
    for batch, labels_N in batches:
        for kind in KINDS:
            posted = spoilt(batch, labels_N, kind)
            about = {"stream": stream.name, "name": batch.name, "kind": kind}
            pairs = _pairs(model, posted)
            # Held already: what else it would miss takes ten times as long to find.
            if pairs is not None and pairs.score < pairs.least:
                rows = len(posted.training)
                checked = {"agreement": pairs.model_dump(), "missed": ["min_agreement"]}
                yield {**about, "rows": rows, "bounds": {}, "overlap": [], **checked}
                continue
            try:
                _, candidate = learn(model, posted)
            except NothingToLearn as error:
                yield {**about, "refused": str(error)}
            else:
                yield _found(stream, batch.name, kind, candidate)


def _divided(folder: Path, dataset: Dataset) -> tuple[Dataset, tuple[Dataset, Tensor]]:
    """Two thirds of the rows to learn first, and the rest with the classes of its rows."""
    names = pq.read_table(folder / f"{dataset.name}.train.parquet", columns=["label"])
    classes = {name: number for number, name in enumerate(sorted(set(names[0].to_pylist())))}
    labels_N = torch.tensor([classes[name] for name in names[0].to_pylist()])
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(3))
    first_N, rest_N = order_N[: len(order_N) * 2 // 3], order_N[len(order_N) * 2 // 3 :]
    learned = replace(dataset, training=dataset.training.at(first_N))
    return learned, (replace(dataset, training=dataset.training.at(rest_N)), labels_N[rest_N])


def spoilt(batch: Dataset, labels_N: Tensor, kind: str) -> Dataset:
    """A batch in which something went wrong."""
    rows = batch.training
    match kind.split():
        case [share, _, "shuffled"]:
            rows = _shuffled(rows, int(share) / 100)
        case ["wrong", _]:
            # The features of another encoder of the same width: turned at random.
            width = rows.second_NJ.shape[1]
            random = torch.Generator().manual_seed(width)
            turn_JJ = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
            rows = replace(rows, second_NJ=unit_rows(rows.second_NJ.float()) @ turn_JJ)
        case ["one", _]:
            rows = rows.at((labels_N == labels_N.mode().values).nonzero()[:, 0])
    return replace(batch, training=rows)


def _shuffled(rows: PairedRows, share: float) -> PairedRows:
    chosen_K = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7))
    chosen_K = chosen_K[: round(share * len(rows))]
    partner_N = torch.arange(len(rows))
    partner_N[chosen_K] = chosen_K.roll(1)
    return replace(
        rows, second_NJ=rows.second_NJ[partner_N], second_keys_N=rows.second_keys_N[partner_N]
    )


def learn(model: Model, dataset: Dataset) -> tuple[Model, VersionManifest]:
    """Learn a dataset as the training job does; return the next version and its manifest, without files."""
    result = learn_one(model.spec, model.state, dataset, model.past)
    version = len(model.lines) + 1
    name = f"ds-{version:012x}"
    report = _report(model, dataset, result, name)
    halves = halves_of(result.choice)
    line = LearnedDataset(
        dataset=name,
        name=dataset.name,
        pair=dataset.pair,
        rows=len(dataset.training),
        version=version,
        moments=_NOWHERE,
        shard_digests=(_NOWHERE.sha256,),
        recall=report.evaluation[name],
        ridges=result.choice.by_modality(dataset.pair.modalities, None) if result.choice else {},
        halves=halves,
    )
    manifest = VersionManifest(
        model="gate",
        version=version,
        parent=version - 1 or None,
        job=f"job-{version}",
        attempt=1,
        dataset=name,
        spec=model.spec,
        code_version="",
        created_at=datetime.now(UTC),
        files={},
        learned=(*model.lines, line),
        report=report,
    )
    sums = dataset_moments(result.moments)
    after = Model(
        model.spec,
        result.model_state,
        manifest.learned,
        (*model.past, replace(remember(dataset, result), dataset=name)),
        (*model.datasets, dataset),
        {**model.sums, name: sums},
    )
    return after, manifest


def _pairs(model: Model, batch: Dataset) -> Agreement | None:
    """How the pairs of a batch agree, without learning it."""
    rows = RowsInMemory(batch.training)
    halves = moments_of_halves(model.state.heads, batch.pair, rows, Run())
    found = halves_of(method_for(model.spec).choose(batch.pair, halves))
    return _agreement(model, batch, halves[0] + halves[1], found) if found else None


def _agreement(model: Model, dataset: Dataset, moments: PairMoments, halves: Halves) -> Agreement:
    same = [(line, model.sums[line.dataset]) for line in comparable(model.lines, dataset.pair)]
    return agreement(dataset.pair, moments, halves, same)


def _report(model: Model, dataset: Dataset, result: TrainingResult, name: str) -> VersionReport:
    before, now = model.state.heads, result.model_state.heads
    certified = certificates(model.past, before, now)
    evaluation = Evaluation()
    for line, known in zip(model.lines, model.datasets, strict=True):
        evaluation.add(line.dataset, now, known.pair, known.held_out, before)
    evaluation.add(name, now, dataset.pair, dataset.held_out)
    halves = halves_of(result.choice)
    return VersionReport(
        final_loss=0.0,
        updates=0,
        ranks=1,
        drift={dataset: each.drift for dataset, each in certified.items()},
        evaluation=evaluation.now,
        overlap=overlaps(certified, evaluation, model.lines),
        agreement=halves and _agreement(model, dataset, result.moments, halves),
    )


def _found(stream: Stream, name: str, kind: str, candidate: VersionManifest) -> dict[str, Any]:
    checked = {each.name: each for each in bounds(_AUTO, candidate)}
    return {
        "stream": stream.name,
        "name": name,
        "kind": kind,
        "rows": candidate.learned[-1].rows,
        "agreement": pairs.model_dump() if (pairs := candidate.report.agreement) else None,
        "bounds": {name: [each.permitted, each.found] for name, each in checked.items()},
        "missed": [name for name, each in checked.items() if each.met is False],
        "overlap": [
            [each.measured, each.expected, each.halves]
            for each in candidate.report.overlap.values()
        ],
    }


# --- The page -------------------------------------------------------------------------------------


def _page(document: Mapping[str, Any]) -> str:
    streams = list(dict.fromkeys(each["stream"] for each in document["steps"]))
    rows = []
    for kind in ("step", *KINDS):
        cells = [kind]
        for stream in streams:
            found = [
                each
                for each in (*document["steps"], *document["batches"])
                if (each["stream"], each["kind"]) == (stream, kind)
            ]
            held = sum(bool(each.get("missed")) or "refused" in each for each in found)
            cells.append(f"{held} of {len(found)}")
        rows.append(cells)
    parts = [
        "# A gate that sets itself",
        "## Machine\n" + listed(document["machine"]),
        "## Result",
        table(("posted", *(f"held or refused, {stream}" for stream in streams)), rows),
        _expected(document["steps"], streams),
        _each(document),
    ]
    return "\n\n".join(parts) + "\n"


def _expected(steps: Sequence[Mapping[str, Any]], streams: Sequence[str]) -> str:
    """How far the expected overlaps are from those that were measured."""
    rows = []
    for stream in streams:
        pairs = [each for step in steps if step["stream"] == stream for each in step["overlap"]]
        off = sorted(abs(measured - expected) for measured, expected, _ in pairs)
        rows.append(
            [
                stream,
                len(off),
                *(f"{fmean(each[place] for each in pairs):.3f}" for place in (0, 1, 2)),
                f"{off[len(off) // 2]:.3f}",
                f"{off[len(off) * 9 // 10]:.3f}",
                f"{off[-1]:.3f}",
            ]
        )
    heads = ("stream", "overlaps", "measured", "expected", "halves")
    return table((*heads, "off by: median", "nine tenths", "most"), rows)


def _each(document: Mapping[str, Any]) -> str:
    rows = []
    for each in (*document["steps"], *document["batches"]):
        cells = [f"{each['stream']}/{each['name']}", each["kind"]]
        if "refused" in each:
            rows.append([*cells, "refused", *[""] * 4])
            continue
        pairs, numbers = each["agreement"], [each["bounds"].get(name) for name in _SHOWN]
        numbers.append([pairs["least"], pairs["score"]] if pairs else None)
        shown = [
            f"{found[1]:.3f} / {found[0]:.3f}" if found and found[0] is not None else ""
            for found in numbers
        ]
        rows.append([*cells, each["rows"], *shown, ", ".join(each["missed"])])
    heads = ("dataset", "posted", "rows", "mean change", "overlap", "agreement", "missed")
    return table(heads, rows)


if __name__ == "__main__":
    sys.exit(main())
