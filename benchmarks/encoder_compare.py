"""Does the agreement of two halves, by which `cmcl encoder compare` ranks encoders, rank them as test rows do?

`python -m benchmarks.encoder_compare DIR ...` makes other encoders of that of each dataset's first side. README.md
describes the output.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor

from benchmarks.chain import Dataset, learn_one
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
from cmcl.contract.model import ModelSpec
from workers.compare_encoders import SPLITS, compare
from workers.model.heads import PairedRows, unit_rows
from workers.nullspace.threads import one_thread
from workers.train.evaluation import measure
from workers.train.learn import initial_state

_METRICS = ("recall_at_1", "recall_at_10")


def _noise(like_NF: Tensor) -> Tensor:
    """Rows of length 1 on average, other ones for another number of rows."""
    rows, width = like_NF.shape
    random = torch.Generator().manual_seed(rows)
    noise_NF: Tensor = torch.randn(rows, width, generator=random) / width**0.5
    return noise_NF


def _rotated(unit_NF: Tensor) -> Tensor:
    width = unit_NF.shape[1]
    random = torch.Generator().manual_seed(width)
    rotation_FF: Tensor = torch.linalg.qr(torch.randn(width, width, generator=random)).Q
    return unit_NF @ rotation_FF


# Of unit features (N × F).
ENCODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda unit_NF: unit_NF,
    "half": lambda unit_NF: unit_NF[:, : unit_NF.shape[1] // 2],
    "quarter": lambda unit_NF: unit_NF[:, : unit_NF.shape[1] // 4],
    "eighth": lambda unit_NF: unit_NF[:, : unit_NF.shape[1] // 8],
    "rotated with noise": lambda unit_NF: _rotated(unit_NF) + _noise(unit_NF),
    "beside noise": lambda unit_NF: torch.cat([unit_NF, _noise(unit_NF)], dim=1),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    options = _options(arguments)
    kept: Path = options.out / "encoder-compare.datasets.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    lines = kept.read_text().splitlines() if kept.is_file() else []
    measured = {line["dataset"]: line for line in map(json.loads, lines)}
    streams = {folder.name: read_stream(folder).datasets for folder in options.folders}
    with kept.open("a") as file, one_thread():
        for stream, datasets in streams.items():
            for dataset in datasets:
                name = f"{stream}/{dataset.name}"
                if name not in measured:
                    measured[name] = {"dataset": name, **measured_encoders(dataset, options.splits)}
                    print(json.dumps(measured[name]), file=file, flush=True)
                    log_progress(f"{name}: {measured[name]['figures']}")
    document = {
        "streams": {
            stream: [measured[f"{stream}/{each.name}"] for each in datasets]
            for stream, datasets in streams.items()
        },
        "splits": options.splits,
        "machine": machine(),
    }
    publish(options, "encoder-compare", _page(document), document)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="python -m benchmarks.encoder_compare", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a stream")
    parser.add_argument(
        "--splits", type=count, default=SPLITS, help=f"divisions into halves (default: {SPLITS})"
    )
    add_out(parser)
    return parser.parse_args(arguments)


def measured_encoders(dataset: Dataset, splits: int) -> dict[str, Any]:
    """Agreement on training rows and recall on test rows, by encoder; and how far one ranks as the other."""
    training = {name: _encoded(dataset.training, encode) for name, encode in ENCODERS.items()}
    compared = compare(training, splits).features
    encoders = {}
    for each in compared:
        held_out = replace(
            dataset.held_out, rows=_encoded(dataset.held_out.rows, ENCODERS[each.name])
        )
        learned = replace(dataset, training=training[each.name], held_out=held_out)
        found = recall_of(learned, each.widths)
        encoders[each.name] = {**each.model_dump(), "is_behind": each.is_behind, **found}
    return {"encoders": encoders, "figures": _figures(list(encoders.values()))}


def recall_of(dataset: Dataset, widths: tuple[int, int]) -> dict[str, float]:
    """Recall on held-out rows of a model that learns this dataset alone, with the product's defaults."""
    modalities = dict(zip(dataset.pair.modalities, widths, strict=True))
    spec = ModelSpec.model_validate({"policy": "improve", "modalities": modalities})
    learned = learn_one(spec, initial_state(spec), dataset, ())
    found = measure(learned.model_state.heads, dataset.pair, dataset.held_out)
    return {"recall_at_1": found.at_1, "recall_at_10": found.at_10}


def _encoded(rows: PairedRows, encode: Callable[[Tensor], Tensor]) -> PairedRows:
    return replace(rows, first_NI=encode(unit_rows(rows.first_NI)))


def _figures(encoders: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of encoders from the highest agreement to the lowest: rank correlations with recall, and what the first one loses.

    `lost`: R@10 of the best one on test rows, less that of the first. `behind` were said to be behind the first by more
    than chance, and `wrongly` of them have a higher R@10.
    """
    agreements = [each["agreement"] for each in encoders]
    found = dict[str, float]()
    for metric in _METRICS:
        recalls = [each[metric] for each in encoders]
        found[f"spearman_{metric}"] = float(spearmanr(agreements, recalls).statistic)
        found[f"kendall_{metric}"] = float(kendalltau(agreements, recalls).statistic)
    tens = [each["recall_at_10"] for each in encoders]
    behind = [ten for ten, each in zip(tens, encoders, strict=True) if each["is_behind"]]
    found["lost"] = max(tens) - tens[0]
    found["behind"], found["wrongly"] = len(behind), sum(ten > tens[0] for ten in behind)
    return found


def _page(document: Mapping[str, Any]) -> str:
    parts = ["# Comparing encoders", "## Machine\n" + listed(document["machine"]), "## Result"]
    for stream, datasets in document["streams"].items():
        rows = [[each["dataset"].partition("/")[2], *_cells(each["figures"])] for each in datasets]
        names = datasets[0]["figures"]
        mean = {name: fmean(each["figures"][name] for each in datasets) for name in names}
        parts.append(
            f"### {stream}\n" + table(["dataset", *_HEADINGS], [*rows, ["mean", *_cells(mean)]])
        )
        parts.append(table(["dataset", *ENCODERS], list(map(_encoders_row, datasets))))
    return "\n\n".join(parts) + "\n"


_HEADINGS = ("Spearman R@1", "R@10", "Kendall R@1", "R@10", "lost R@10", "behind", "wrongly")


def _cells(figures: Mapping[str, float]) -> list[str]:
    correlations = [
        f"{figures[f'{kind}_{metric}']:.2f}"
        for kind in ("spearman", "kendall")
        for metric in _METRICS
    ]
    counts = [f"{figures[name]:g}" for name in ("behind", "wrongly")]
    return [*correlations, f"{100 * figures['lost']:.1f}", *counts]


def _encoders_row(dataset: Mapping[str, Any]) -> list[str]:
    """Agreement and R@10 of each encoder."""
    found = [dataset["encoders"][name] for name in ENCODERS]
    return [
        dataset["dataset"].partition("/")[2],
        *(f"{each['agreement']:.1f}, {100 * each['recall_at_10']:.1f}" for each in found),
    ]


if __name__ == "__main__":
    sys.exit(main())
