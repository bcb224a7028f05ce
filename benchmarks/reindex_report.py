"""Results of the re-indexing benchmark, as a JSON document, a table and a Markdown page."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from benchmarks.compatibility import Compatibility, MeasuredMigration, MeasuredPair
from benchmarks.folder import Stream
from benchmarks.report import machine
from cmcl.contract.model import ModelSpec

# Heading and figure of each column.
COLUMNS = (
    ("drift", "drift_predicted"),
    ("held-out", "drift_measured"),
    ("mixed", "mixed_predicted"),
    ("held-out", "mixed_measured"),
    ("unit", "mixed_unit"),
    ("own kind", "own_predicted"),
    ("held-out", "own_measured"),
    ("R@10 then", "recall_both_old"),
    ("old index", "recall_old_index"),
    ("migrated", "recall_migrated"),
    ("encoded again", "recall_both_new"),
    ("error", "migration_predicted"),
    ("held-out", "migration_measured"),
    ("cosine", "cosine_mean"),
    ("1st perc.", "cosine_percentile_1"),
    ("unmigrated", "cosine_unmigrated"),
)
_HEADINGS = ["dataset", *(heading for heading, _ in COLUMNS)]
EXPLAINED = (
    "For each dataset, the last version compared with the one that learned it, averaged over both "
    "sides. Changes are relative (root mean square over all scores): predicted from moments, then "
    "measured on held-out rows. drift: after re-indexing. mixed: vectors stored by the old version, "
    "queries of the other modality by the new one, compared with the earlier scores (unit: of unit "
    "vectors). own kind: queries of the same modality instead. R@10, in percentage points: then, "
    "with the old version alone; with queries by the new version on the old index, on the migrated "
    "one, and on one encoded again. error: relative error of migrated unnormalised embeddings. "
    "cosine: of migrated unit vectors with those encoded again, its first percentile, and without "
    "migration."
)


@dataclass(frozen=True)
class Side:
    """One modality of a dataset: queries of the same modality on old vectors, and its migration.

    `own_predicted`, `own_measured`: change of scores within the modality, with vectors of the
    old version and queries of the new one. The migration map comes from the modality's pooled
    moment in the version that learned the dataset.
    """

    own_predicted: float
    own_measured: float
    rank: int
    condition: float
    exact: bool
    predicted_error: float
    error_on_rows: float
    measured: MeasuredMigration


@dataclass(frozen=True)
class Reindexed:
    """Result for one dataset. `recall_at_10` by kind of index, `sides` by modality."""

    rows: int
    predicted: Compatibility
    measured: MeasuredPair
    recall_at_10: Mapping[str, float]
    sides: Mapping[str, Side]

    @property
    def figures(self) -> dict[str, float]:
        """Figures of the table."""
        sides = list(self.sides.values())
        measured = [side.measured for side in sides]
        return {
            "drift_predicted": self.predicted.both_new,
            "drift_measured": self.measured.scores.both_new,
            "mixed_predicted": _mixed(self.predicted),
            "mixed_measured": _mixed(self.measured.scores),
            "mixed_unit": _mixed(self.measured.unit_scores),
            "own_predicted": fmean(side.own_predicted for side in sides),
            "own_measured": fmean(side.own_measured for side in sides),
            **{f"recall_{name}": value for name, value in self.recall_at_10.items()},
            "migration_predicted": fmean(side.predicted_error for side in sides),
            "migration_measured": fmean(one.error for one in measured),
            "cosine_mean": fmean(one.cosine_mean for one in measured),
            "cosine_percentile_1": fmean(one.cosine_percentile_1 for one in measured),
            "cosine_unmigrated": fmean(one.cosine_unmigrated for one in measured),
        }


def document(
    stream: Stream, spec: ModelSpec, methods: Mapping[str, Mapping[str, Reindexed]]
) -> dict[str, Any]:
    """Return the JSON document: `datasets` in full, `figures` as in the table, `mean` over
    datasets."""
    return {
        "stream": stream.name,
        "width": spec.width,
        "seed": spec.seed,
        "datasets": [dataset.name for dataset in stream.datasets],
        "modalities": stream.widths,
        "methods": {name: _method(found) for name, found in methods.items()},
        "configuration": spec.training.model_dump(mode="json"),
        "machine": machine(),
    }


def _method(found: Mapping[str, Reindexed]) -> dict[str, Any]:
    figures = {dataset: one.figures for dataset, one in found.items()}
    return {
        "mean": {
            name: _finite(fmean(one[name] for one in figures.values())) for _, name in COLUMNS
        },
        "figures": {
            dataset: {name: _finite(value) for name, value in one.items()}
            for dataset, one in figures.items()
        },
        "datasets": {dataset: _finite(asdict(one)) for dataset, one in found.items()},
    }


def _finite(value: Any) -> Any:
    """Replace infinity by null, because JSON cannot represent it."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _rows(method: Mapping[str, Any]) -> list[list[str]]:
    """Return one row per dataset, and one for their mean."""
    lines = {**method["figures"], "mean": method["mean"]}
    return [
        [dataset, *(_cell(name, figures[name]) for _, name in COLUMNS)]
        for dataset, figures in lines.items()
    ]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "∞"
    return f"{value * 100:.1f}" if name.startswith("recall") else f"{value:.3f}"


def as_text(answer: Mapping[str, Any]) -> str:
    parts = [EXPLAINED]
    for name, method in answer["methods"].items():
        parts += ["", name, _table(method)]
    return "\n".join(parts)


def markdown(answer: Mapping[str, Any], question: str) -> str:
    """Render the page."""
    tables = "\n\n".join(
        f"### {name}\n{_table(method)}" for name, method in answer["methods"].items()
    )
    described = {
        "datasets, in order": ", ".join(answer["datasets"]),
        "modalities and widths": ", ".join(f"{m} {w}" for m, w in answer["modalities"].items()),
        "seed": answer["seed"],
        **answer["configuration"],
    }
    return (
        f"# Re-indexing {answer['stream']}, width {answer['width']}\n\n## Question\n{question}\n\n"
        f"## Machine\n{_listed(answer['machine'])}\n\n"
        f"## Configuration\n{_listed(described)}\n\n## Result\n{EXPLAINED}\n\n{tables}\n"
    )


def _table(method: Mapping[str, Any]) -> str:
    lines = ["| " + " | ".join(_HEADINGS) + " |", "|---" * len(_HEADINGS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in _rows(method))])


def _listed(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def _mixed(found: Compatibility) -> float:
    return fmean([found.first_stored.against_old, found.second_stored.against_old])
