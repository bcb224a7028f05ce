"""`python -m workers.compare_encoders FILE FILE ...`: which encoder's features of the same pairs pair better.

Without labels, test rows or a model. Pairs are divided into two halves at random. Heads as the policy `improve` solves
them from one half are scored on the other half (workers/nullspace/two_folds.py), by the number that its ridges are chosen
by. That number, the *agreement*, is between 0 and the number of directions, and counts those in which both sides agree
on pairs that the heads have not seen. All encoders have the same halves, so that differences between them vary less than
each figure does.

Shapes: N pairs, F and G widths of the two sides.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from statistics import fmean, median_high, stdev

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from cmcl.contract.encoder import ComparedFeatures, EncoderComparison
from cmcl.contract.errors import InvalidDataset, WorkerError
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.files.columns import FEATURES, Side, UserFile, check_rows
from workers.files.formats import is_internal, open_parquet, read_parquet
from workers.files.shards import Rows, open_in_pieces, rows_of
from workers.methods.improve import Improve
from workers.model.heads import PairedRows, initial_heads, unit_rows
from workers.nullspace.conditioning import centring
from workers.nullspace.moments import pair_moments
from workers.nullspace.two_folds import Choice
from workers.train.dataset import paired_rows
from workers.train.learn import condition_new_modalities, prepare_rows
from workers.train.rows import RowsInMemory
from workers.train.run import Run

# Random divisions into halves.
SPLITS = 5
_PAIR = ModalityPair(first="first", second="second")
# With fewer pairs, halves agree by chance as much as by what was learned.
_FEWEST = 20


def compare_files(files: Sequence[Path], concatenated: bool = False) -> EncoderComparison:
    """Compare features of the same pairs, one Parquet file for each encoder; `concatenated`: also all of them together.

    Pairs are matched by `id`; those that a file lacks are left out. Raises InvalidDataset.
    """
    if repeated := [str(file) for file, times in Counter(files).items() if times > 1]:
        raise InvalidDataset(f"{repeated[0]} is given more than once; give one file per encoder")
    read = [_read(file) for file in files]
    common = reduce(np.intersect1d, [ids for ids, _ in read])
    if len(common) < _FEWEST:
        raise InvalidDataset(
            f"the files have {len(common)} ids in common, at least {_FEWEST} are needed; pairs are matched by 'id'"
        )
    encoders = {}
    for file, (ids, rows) in zip(files, read, strict=True):
        at = np.argsort(ids)[np.searchsorted(np.sort(ids), common)]
        encoders[str(file)] = paired_rows(Rows(rows.feature_a_BI[at], rows.feature_b_BI[at], None))
    if concatenated:
        encoders[" + ".join(encoders)] = concatenation(list(encoders.values()))
    return compare(encoders)


def concatenation(encoders: Sequence[PairedRows]) -> PairedRows:
    """The features of all encoders side by side, each at unit length. Sides that are equal count once."""

    def joined(sides: Sequence[Tensor]) -> np.ndarray:
        differing = list[Tensor]()
        for side in sides:
            if not any(torch.equal(side, other) for other in differing):
                differing.append(side)
        return torch.cat([unit_rows(side) for side in differing], dim=1).numpy()

    first_NF, second_NG = (
        joined([getattr(each, side) for each in encoders]) for side in ("first_NI", "second_NJ")
    )
    return paired_rows(Rows(first_NF, second_NG, None))


def compare(encoders: dict[str, PairedRows], splits: int = SPLITS) -> EncoderComparison:
    """Compare encoders by name: features of the same pairs, in the same order. The best one comes first."""
    pairs = next(iter(encoders.values()))
    halves = [_first_half(pairs, seed) for seed in range(splits)]
    found = {name: agreements(rows, halves) for name, rows in encoders.items()}
    scores = {name: [each.score for each in choices] for name, choices in found.items()}
    ranked = sorted(scores, key=lambda name: fmean(scores[name]), reverse=True)
    compared = []
    for name in ranked:
        behind = [best - own for best, own in zip(scores[ranked[0]], scores[name], strict=True)]
        directions = [each.significant or sys.maxsize for each in found[name]]
        compared.append(
            ComparedFeatures(
                name=name,
                widths=(encoders[name].first_NI.shape[1], encoders[name].second_NJ.shape[1]),
                agreement=fmean(scores[name]),
                agreement_std=stdev(scores[name]),
                directions=median_high(directions) if max(directions) < sys.maxsize else None,
                behind=fmean(behind),
                behind_error=stdev(behind) * (1 + 1 / splits) ** 0.5,
            )
        )
    return EncoderComparison(pairs=len(pairs), splits=splits, features=tuple(compared))


def agreements(rows: PairedRows, first_halves: Sequence[Tensor]) -> list[Choice]:
    """How far heads of either half of these rows agree on the other, as `improve` reads and scores them.

    `first_halves`: for each division which rows are in the first half (bool, N).
    """
    widths = {_PAIR.first: rows.first_NI.shape[1], _PAIR.second: rows.second_NJ.shape[1]}
    spec = ModelSpec.model_validate({"policy": "improve", "modalities": widths, "lift": 0})
    heads = condition_new_modalities(
        spec, initial_heads(spec), _PAIR, RowsInMemory(rows), Run(), centring
    )
    read, improve = prepare_rows(heads, _PAIR, rows), Improve.from_spec(spec)
    found = []
    for first_N in first_halves:
        one, other = (read.at(half_N) for half_N in (first_N, ~first_N))
        sums = pair_moments(one.first_NI, one.second_NJ)
        found.append(improve.choose(_PAIR, (sums, pair_moments(other.first_NI, other.second_NJ))))
    return found


def _first_half(rows: PairedRows, seed: int) -> Tensor:
    """Which pairs are in the first half (bool, N). Equal pairs are in the same one."""
    keys_N2 = torch.stack([rows.first_keys_N, rows.second_keys_N], dim=1)
    _, number_N = torch.unique(keys_N2, dim=0, return_inverse=True)
    return torch.rand(len(rows), generator=torch.Generator().manual_seed(seed))[number_N] < 0.5


def _read(file: Path) -> tuple[np.ndarray, Rows]:
    """Ids and features of a file in the internal form. Raises InvalidDataset."""
    uri = str(file)
    schema = open_parquet(file, uri).schema_arrow
    if not is_internal(file, uri):
        raise InvalidDataset(f"{uri}: features must be fixed-size lists of float16 or float32")
    first, second = (
        Side(name, name, schema.field(name).type.list_size if schema.names.count(name) == 1 else 0)
        for name in FEATURES
    )
    theirs = UserFile(file, uri, "", (first, second))
    check_rows(read_parquet(theirs), theirs)
    ids = pq.read_table(file, columns=["id"]).column("id").to_pylist()
    with open_in_pieces(file) as opened:
        return np.asarray(ids), rows_of([opened])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison as one JSON document. Status 2: a file cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.compare_encoders", description=compare_files.__doc__
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--concatenated", action="store_true")
    options = parser.parse_args(arguments)
    try:
        found = compare_files(options.files, options.concatenated)
    except (WorkerError, OSError) as error:
        print(f"cmcl encoder compare: {error}", file=sys.stderr)
        return 2
    print(found.model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
