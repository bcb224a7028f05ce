"""Must stored vectors be made anew when a model has learned more, and can it be done without encoders?

`python -m benchmarks.reindex DIR` learns a stream under three policies. For every dataset but the
last, at the end against the version that learned it: what moments predict, what held-out rows say,
and recall@10 of an index that is left as it was, migrated, or encoded anew.
Shapes: N held-out rows, E width of the embeddings.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor

from benchmarks.chain import Dataset, learn_one
from benchmarks.folder import InvalidStream, Stream, read_stream
from benchmarks.report import machine
from workers.contract.model import ModelSpec, TrainingSpec
from workers.inspect.measured import (
    MeasuredMigration,
    MeasuredPair,
    embedded,
    measured_migration,
    measured_pair,
)
from workers.inspect.show import aligned
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows
from workers.nullspace.compatibility import Compatibility, compatibility
from workers.nullspace.migrate import Migration, migration
from workers.train.certify import Earlier, weights_of
from workers.train.learn import Knowledge, before_the_first

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "nullspace": {"policy": "improve"},
    "nullspace_preserve": {"policy": "preserve"},
    "nullspace_preserve_stable_index": {"policy": "preserve", "stable_index": True},
}
_RESULTS = Path(".cmcl/benchmarks")
_BEST = 10
# Columns of the table: heading and figure.
COLUMNS: Mapping[str, str] = {
    "drift": "drift_predicted",
    "held-out": "drift_measured",
    "mixed": "mixed_predicted",
    "held-out ": "mixed_measured",
    "unit": "mixed_unit",
    "R@10 as it was": "recall_both_old",
    "old index": "recall_old_index",
    "migrated": "recall_migrated",
    "anew": "recall_both_new",
    "migration error": "migration_predicted",
    "held-out  ": "migration_measured",
    "cosine": "cosine_mean",
    "1st perc.": "cosine_percentile_1",
    "unmigrated": "cosine_unmigrated",
}
EXPLAINED = (
    "For each dataset, the last version against the one that learned it; both sides averaged. "
    "drift: change of all scores after re-indexing. mixed: vectors stored by the old version, "
    "queries by the new one, against the scores before. Both relative (root mean square): as "
    "moments predict, on held-out rows, and (unit) of unit vectors. R@10, in points of percent, "
    "with queries by the new version: on the old index, on the migrated one, encoded anew. "
    "migration error: relative, of unnormalised embeddings. cosine: of migrated unit vectors with "
    "those encoded anew, its first percentile, and without migrating."
)


@dataclass(frozen=True)
class Learnt:
    """A dataset, what the version that learned it knew, and what it remembers of the dataset."""

    dataset: Dataset
    knowledge: Knowledge
    remembered: Earlier


@dataclass(frozen=True)
class MigratedSide:
    """One modality's map, from its pooled moment in the version that learned the dataset."""

    rank: int
    condition: float
    exact: bool
    predicted_error: float
    measured: MeasuredMigration


@dataclass(frozen=True)
class Reindexed:
    """One dataset at the end. `recall_at_10` by what is searched; `migrations` by modality."""

    rows: int
    predicted: Compatibility
    measured: MeasuredPair
    recall_at_10: Mapping[str, float]
    migrations: Mapping[str, MigratedSide]

    @property
    def figures(self) -> dict[str, float]:
        """What the table shows."""
        sides = list(self.migrations.values())
        measured = [side.measured for side in sides]
        return {
            "drift_predicted": self.predicted.both_new,
            "drift_measured": self.measured.scores.both_new,
            "mixed_predicted": _mixed(self.predicted),
            "mixed_measured": _mixed(self.measured.scores),
            "mixed_unit": _mixed(self.measured.unit_scores),
            **{f"recall_{name}": value for name, value in self.recall_at_10.items()},
            "migration_predicted": fmean(side.predicted_error for side in sides),
            "migration_measured": fmean(one.error for one in measured),
            "cosine_mean": fmean(one.cosine_mean for one in measured),
            "cosine_percentile_1": fmean(one.cosine_percentile_1 for one in measured),
            "cosine_unmigrated": fmean(one.cosine_unmigrated for one in measured),
        }


class _Parser(argparse.ArgumentParser):
    """Mistakes are answered in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"benchmarks.reindex: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn, measure, print a table, leave the results in a folder."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        stream = read_stream(options.folder)
        specs = _specs(options, stream)
        out: Path = options.out or _RESULTS / stream.name
        out.mkdir(parents=True, exist_ok=True)
    except ValidationError as error:
        parser.error("; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()))
    except (InvalidStream, OSError) as error:
        parser.error(str(error))
    methods = {}
    for name, spec in specs.items():
        _say(f"learning {len(stream.datasets)} datasets with {name}")
        methods[name] = reindexed(learn_stream(stream.datasets, spec))
    answer = document(stream, next(iter(specs.values())), methods)
    print(_as_text(answer))
    stem = out / f"reindex-{stream.name}-{options.width}"
    stem.with_suffix(".json").write_text(json.dumps(answer, allow_nan=False) + "\n")
    stem.with_suffix(".md").write_text(markdown(answer))
    _say(f"results are in {out}")
    if options.json:
        print(json.dumps(answer, allow_nan=False), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks.reindex", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="NN_name_xy.{train,test}.parquet")
    parser.add_argument("--width", type=int, default=256, help="of the embeddings (default: 256)")
    parser.add_argument("--epochs", type=int, help="(default: the product's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"for the results (default: {_RESULTS}/NAME)")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one document")
    return parser


def _specs(options: argparse.Namespace, stream: Stream) -> dict[str, ModelSpec]:
    """By name of the policy. Raises InvalidStream for a single dataset, ValidationError."""
    if len(stream.datasets) < 2:
        raise InvalidStream(f"{options.folder}: it has 1 dataset, nothing is learned after it")
    usual = TrainingSpec()
    training = {"batch_size": min(usual.batch_size, stream.fewest_rows)}
    training["epochs"] = usual.epochs if options.epochs is None else options.epochs
    model = {"width": options.width, "modalities": stream.widths, "seed": options.seed}
    return {
        name: ModelSpec.model_validate({**model, "training": training, "protection": protection})
        for name, protection in POLICIES.items()
    }


def learn_stream(stream: Sequence[Dataset], spec: ModelSpec) -> list[Learnt]:
    """The datasets in order, with the product's own code; nothing that was known is lost."""
    found: list[Learnt] = []
    knowledge = before_the_first(spec)
    for dataset in stream:
        earlier = tuple(one.remembered for one in found)
        learned = learn_one(spec, knowledge, dataset, earlier)
        knowledge = learned.knowledge
        then = weights_of(dataset.pair, knowledge.heads)
        remembered = Earlier(dataset.name, dataset.pair, learned.moments, then)
        found.append(Learnt(dataset, knowledge, remembered))
    return found


def reindexed(learnt: Sequence[Learnt]) -> dict[str, Reindexed]:
    """Every dataset but the last at the end, against the version that learned it."""
    new = learnt[-1].knowledge.heads
    return {one.dataset.name: _reindexed(one, new) for one in learnt[:-1]}


def _reindexed(one: Learnt, new: ModalityHeads) -> Reindexed:
    pair, rows, old = one.dataset.pair, one.dataset.held_out.rows, one.knowledge.heads
    remembered = one.remembered
    maps = {
        modality: _map(one.knowledge, modality, new) for modality in one.dataset.pair.modalities
    }
    sides = dict(zip(pair.modalities, (rows.first_NI, rows.second_NJ), strict=True))
    return Reindexed(
        rows=len(rows),
        predicted=compatibility(remembered.moments, remembered.then, weights_of(pair, new)),
        measured=measured_pair(embedded(old, pair, rows), embedded(new, pair, rows)),
        recall_at_10=_recalls(one, new, maps),
        migrations={
            modality: MigratedSide(
                found.rank,
                found.condition,
                found.exact,
                found.predicted_error,
                measured_migration(found, modality, old, new, sides[modality]),
            )
            for modality, found in maps.items()
        },
    )


def _map(then: Knowledge, modality: str, new: ModalityHeads) -> Migration:
    inputs = then.memory.inputs_of(modality)
    if inputs is None:
        raise LookupError(f"the version that learned a dataset of {modality!r} has no moment of it")
    return migration(inputs, then.heads.weights[modality], new.weights[modality])


def _recalls(one: Learnt, new: ModalityHeads, maps: Mapping[str, Migration]) -> dict[str, float]:
    """By what is searched: queries are the new version's, but for `both_old`."""
    pair, rows, old = one.dataset.pair, one.dataset.held_out.rows, one.knowledge.heads
    sides = dict(zip(pair.modalities, (rows.first_NI, rows.second_NJ), strict=True))
    before = {modality: old.embed(modality, raw_NF) for modality, raw_NF in sides.items()}
    after = {modality: new.embed(modality, raw_NF) for modality, raw_NF in sides.items()}
    migrated = {modality: maps[modality].apply_unit(before[modality]) for modality in sides}

    def both_ways(queries: Mapping[str, Tensor], index: Mapping[str, Tensor]) -> float:
        first, second = pair.modalities
        ways = ((first, second), (second, first))
        return fmean(recall_at_10(queries[query], index[stored], rows) for query, stored in ways)

    return {
        "both_old": both_ways(before, before),
        "old_index": both_ways(after, before),
        "migrated": both_ways(after, migrated),
        "both_new": both_ways(after, after),
    }


def recall_at_10(queries_NE: Tensor, index_NE: Tensor, rows: PairedRows) -> float:
    """Share of queries with a row among the ten best that has the same item on either side."""
    best_NK = (queries_NE @ index_NE.mT).topk(min(_BEST, len(index_NE)), dim=1).indices
    hits_NK = torch.zeros_like(best_NK, dtype=torch.bool)
    for keys_N in (rows.first_keys_N, rows.second_keys_N):
        hits_NK |= keys_N[best_NK] == keys_N[:, None]
    return float(hits_NK.any(dim=1).double().mean())


def _mixed(found: Compatibility) -> float:
    return fmean([found.first_stored.against_old, found.second_stored.against_old])


def document(
    stream: Stream, spec: ModelSpec, methods: Mapping[str, Mapping[str, Reindexed]]
) -> dict[str, Any]:
    """The JSON document: `datasets` in full, `figures` as in the table, `mean` over datasets."""
    return {
        "stream": stream.name,
        "width": spec.width,
        "seed": spec.seed,
        "datasets": [dataset.name for dataset in stream.datasets],
        "modalities": stream.widths,
        "methods": {name: _method(found) for name, found in methods.items()},
        "configuration": {
            **spec.training.model_dump(mode="json"),
            "conditioning": spec.conditioning,
        },
        "machine": machine(),
    }


def _method(found: Mapping[str, Reindexed]) -> dict[str, Any]:
    figures = {dataset: one.figures for dataset, one in found.items()}
    return {
        "mean": {
            name: _finite(fmean(one[name] for one in figures.values())) for name in COLUMNS.values()
        },
        "figures": {
            dataset: {name: _finite(value) for name, value in one.items()}
            for dataset, one in figures.items()
        },
        "datasets": {dataset: _finite(asdict(one)) for dataset, one in found.items()},
    }


def _finite(value: Any) -> Any:
    """The same with null in place of infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _rows(method: Mapping[str, Any]) -> list[list[str]]:
    """A line for each dataset and one for their mean."""
    lines = {**method["figures"], "mean": method["mean"]}
    return [
        [dataset, *(_cell(name, figures[name]) for name in COLUMNS.values())]
        for dataset, figures in lines.items()
    ]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "∞"
    return f"{value * 100:.1f}" if name.startswith("recall") else f"{value:.3f}"


def _as_text(answer: Mapping[str, Any]) -> str:
    parts = [EXPLAINED]
    for name, method in answer["methods"].items():
        parts += ["", name, *aligned([["dataset", *COLUMNS], *_rows(method)])]
    return "\n".join(parts)


def markdown(answer: Mapping[str, Any]) -> str:
    """The page: question, machine, configuration, result."""
    tables = "\n\n".join(
        f"### {name}\n{_table(method)}" for name, method in answer["methods"].items()
    )
    described = {
        "datasets, in order": ", ".join(answer["datasets"]),
        "modalities and widths": ", ".join(f"{m} {w}" for m, w in answer["modalities"].items()),
        "seed": answer["seed"],
        **answer["configuration"],
    }
    question = (__doc__ or "").partition("\n")[0]
    return (
        f"# Re-indexing {answer['stream']}, width {answer['width']}\n\n## Question\n{question}\n\n"
        f"## Machine\n{_listed(answer['machine'])}\n\n"
        f"## Configuration\n{_listed(described)}\n\n## Result\n{EXPLAINED}\n\n{tables}\n"
    )


def _table(method: Mapping[str, Any]) -> str:
    lines = ["| dataset | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in _rows(method))])


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
