"""Are shards found whose pairs do not belong together, and how many clean ones are named with them?

`python -m benchmarks.shards DIR ...` divides each dataset into shards and shuffles pairs within a fifth of them. README.md
describes the output.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.chain import Dataset
from benchmarks.command_line import (
    OneLineParser,
    add_out,
    counts,
    listed,
    log_progress,
    publish,
    table,
)
from benchmarks.folder import read_stream
from benchmarks.report import machine
from workers.model.heads import PairedRows
from workers.nullspace.threads import one_thread
from workers.prepare.mismatches import Mismatch, mismatches

_SHARES = (0.05, 0.2, 0.5)
_FOLDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0; 2 if the benchmark cannot start."""
    parser = OneLineParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a stream")
    parser.add_argument("--rows", type=counts, default=(100, 200, 400), help="of a shard")
    add_out(parser)
    options = parser.parse_args(arguments)
    cases = []
    with one_thread():
        for folder in options.folders:
            stream = read_stream(folder)
            for dataset in stream.datasets:
                for rows in options.rows:
                    cases.append({"stream": stream.name, "rows": rows, **measure(dataset, rows)})
                    log_progress(json.dumps(cases[-1]))
    document = {"cases": cases, "machine": machine()}
    publish(options, "shards", _page(document), document)
    return 0


def measure(dataset: Dataset, rows: int) -> dict[str, Any]:
    """By the share that was shuffled, 0 included, what shards were found to have.

    Shards are of rows in random order, three at least. Pairs are shuffled in every fifth one, or in one alone.
    """
    random = torch.Generator().manual_seed(0)
    known = dataset.training.at(torch.randperm(len(dataset.training), generator=random))
    shards = max(3, len(known) // rows)
    shard_N = torch.arange(len(known)) * shards // len(known)
    found: dict[str, Any] = {"name": dataset.name, "shards": shards}
    clean = list(mismatches(known, shard_N).values())
    found["clean"] = {"named": sum(each.is_bad for each in clean), "shards": len(clean)}
    for share in _SHARES:
        bad = set(range(0, shards, _FOLDS))
        shuffled = known
        for shard in bad:
            shuffled = _shuffled(shuffled, (shard_N == shard).nonzero()[:, 0], share, random)
        judged = mismatches(shuffled, shard_N)
        found[str(share)] = _outcome(judged, bad)
    return found


def _shuffled(rows: PairedRows, own: Tensor, share: float, random: torch.Generator) -> PairedRows:
    """The second sides of a share of these rows, moved on by one."""
    chosen = own[torch.randperm(len(own), generator=random)[: max(2, round(share * len(own)))]]
    order = torch.arange(len(rows))
    order[chosen] = chosen.roll(1)
    return replace(rows, second_NJ=rows.second_NJ[order], second_keys_N=rows.second_keys_N[order])


def _outcome(judged: Mapping[int, Mismatch], bad: set[int]) -> dict[str, Any]:
    wrong = [judged[shard] for shard in bad]
    right = [each for shard, each in judged.items() if shard not in bad]
    return {
        # The probability that a bad shard has a larger share than a clean one.
        "auroc": fmean(float(one.share > other.share) for one in wrong for other in right),
        "share": fmean(each.share for each in wrong),
        "limit": fmean(each.limit for each in wrong),
        "bad": len(wrong),
        "named": sum(each.is_bad for each in wrong),
        "clean": len(right),
        "clean_named": sum(each.is_bad for each in right),
    }


def _page(document: Mapping[str, Any]) -> str:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for case in document["cases"]:
        groups.setdefault((case["stream"], case["rows"]), []).append(case)
    heads = (
        "stream",
        "rows of a shard",
        "shuffled",
        "AUROC",
        "least",
        "share",
        "limit",
        "named",
        "clean ones named",
    )
    lines = []
    for (stream, rows), cases in groups.items():
        clean = [each["clean"] for each in cases]
        named = f"{sum(each['named'] for each in clean)} of {sum(each['shards'] for each in clean)}"
        lines.append([stream, rows, "0 %", "", "", "", "", "", named])
        lines += [
            [stream, rows, f"{100 * share:g} %", *_cells([each[str(share)] for each in cases])]
            for share in _SHARES
        ]
    names = ("dataset", "rows of a shard", "shards", *(f"{100 * share:g} %" for share in _SHARES))
    each_one = [
        [
            f"{case['stream']}/{case['name']}",
            case["rows"],
            case["shards"],
            *(_one(case[str(share)]) for share in _SHARES),
        ]
        for case in document["cases"]
    ]
    parts = ["# Bad shards", "## Machine\n" + listed(document["machine"]), "## Result"]
    return "\n\n".join([*parts, table(heads, lines), table(names, each_one)]) + "\n"


def _cells(found: Sequence[Mapping[str, Any]]) -> list[str]:
    aurocs = [each["auroc"] for each in found]
    total = {
        key: sum(each[key] for each in found) for key in ("bad", "named", "clean", "clean_named")
    }
    return [
        f"{fmean(aurocs):.3f}",
        f"{min(aurocs):.2f}",
        f"{fmean(each['share'] for each in found):.3f}",
        f"{fmean(each['limit'] for each in found):.3f}",
        f"{total['named']} of {total['bad']}",
        f"{total['clean_named']} of {total['clean']}",
    ]


def _one(found: Mapping[str, Any]) -> str:
    return f"{found['auroc']:.2f}, {found['named']} of {found['bad']} named"


if __name__ == "__main__":
    sys.exit(main())
