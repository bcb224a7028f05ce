"""Must stored vectors be recomputed once a model has learned more, and is that possible without encoders?

`python -m benchmarks.reindex DIR` learns a stream under three policies. For every dataset but the
last it compares the last version with the one that learned the dataset: changes predicted from
moments and measured on held-out rows, and recall@10 of an index that is left unchanged, migrated,
or encoded again.
Shapes: N held-out rows, E width of the embeddings.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from benchmarks.chain import Dataset, learn_one
from benchmarks.command_line import OneLineParser, log_progress
from benchmarks.compatibility import (
    Embedded,
    compatibility,
    embedded,
    measured_migration,
    measured_pair,
    measured_scores,
)
from benchmarks.folder import InvalidStream, Stream, read_stream
from benchmarks.reindex_report import Reindexed, Side, as_text, document, markdown
from cmcl.contract.model import ModelSpec, Policy, TrainingSpec
from workers.model.heads import ModalityHeads
from workers.model.rows import PairedRows
from workers.nullspace.certificate import PairScores, PairWeights
from workers.nullspace.migrate import Migration, migration
from workers.nullspace.moments import PairMoments
from workers.train.certify import PastDataset, weights_of
from workers.train.learn import ModelState, initial_state

_RESULTS = Path(".cmcl/benchmarks")
_BEST = 10


@dataclass(frozen=True)
class LearnedDataset:
    """A dataset, the state of the version that learned it, and its stored summary."""

    dataset: Dataset
    model_state: ModelState
    remembered: PastDataset


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print a table and write the results."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        stream = read_stream(options.folder)
        if options.name:
            stream = replace(stream, name=options.name)
        specs = _specs(options, stream)
        out: Path = options.out or _RESULTS / stream.name
        out.mkdir(parents=True, exist_ok=True)
    except ValidationError as error:
        parser.error("; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()))
    except (InvalidStream, OSError) as error:
        parser.error(str(error))
    methods = {}
    for name, spec in specs.items():
        log_progress(f"learning {len(stream.datasets)} datasets with {name}")
        methods[name] = reindexed(learn_stream(stream.datasets, spec))
    question = (__doc__ or "").partition("\n")[0]
    answer = document(stream, next(iter(specs.values())), methods)
    print(as_text(answer))
    stem = out / f"reindex-{stream.name}-{options.width}"
    stem.with_suffix(".json").write_text(json.dumps(answer, allow_nan=False) + "\n")
    stem.with_suffix(".md").write_text(markdown(answer, question))
    log_progress(f"results are in {out}")
    if options.json:
        print(json.dumps(answer, allow_nan=False), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m benchmarks.reindex", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="NN_name_xy.{train,test}.parquet")
    parser.add_argument("--width", type=int, default=256, help="of the embeddings (default: 256)")
    parser.add_argument("--epochs", type=int, help="(default: the product's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the stream in the results (default: the folder's)")
    parser.add_argument("--out", type=Path, help=f"for the results (default: {_RESULTS}/NAME)")
    parser.add_argument("--json", action="store_true", help="last line of stdout: one document")
    return parser


def _specs(options: argparse.Namespace, stream: Stream) -> dict[str, ModelSpec]:
    """Return specs by policy name. Raises InvalidStream for a single dataset, and
    ValidationError."""
    if len(stream.datasets) < 2:
        raise InvalidStream(f"{options.folder}: it has 1 dataset; at least 2 are needed")
    usual = TrainingSpec()
    training = {"batch_size": min(usual.batch_size, stream.fewest_rows)}
    training["epochs"] = usual.epochs if options.epochs is None else options.epochs
    model = {"width": options.width, "modalities": stream.widths, "seed": options.seed}
    return {
        policy: ModelSpec.model_validate({**model, "training": training, "policy": policy})
        for policy in get_args(Policy)
    }


def learn_stream(stream: Sequence[Dataset], spec: ModelSpec) -> list[LearnedDataset]:
    """Learn the datasets in order with the product's code, and keep every intermediate state."""
    found: list[LearnedDataset] = []
    model_state = initial_state(spec)
    for dataset in stream:
        earlier = tuple(one.remembered for one in found)
        learned = learn_one(spec, model_state, dataset, earlier)
        model_state = learned.model_state
        then = weights_of(dataset.pair, model_state.heads)
        remembered = PastDataset.held(dataset.name, dataset.pair, learned.moments, then)
        found.append(LearnedDataset(dataset, model_state, remembered))
    return found


def reindexed(learnt: Sequence[LearnedDataset]) -> dict[str, Reindexed]:
    """Compare the last version with the one that learned each dataset, for all but the last
    dataset."""
    new = learnt[-1].model_state.heads
    return {one.dataset.name: _reindexed(one, new) for one in learnt[:-1]}


def _reindexed(one: LearnedDataset, new: ModalityHeads) -> Reindexed:
    pair, rows, old = one.dataset.pair, one.dataset.held_out.rows, one.model_state.heads
    remembered = one.remembered.read()
    maps = {modality: _map(one.model_state, modality, new) for modality in pair.modalities}
    return Reindexed(
        rows=len(rows),
        predicted=compatibility(remembered.moments, remembered.then, weights_of(pair, new)),
        measured=measured_pair(embedded(old, pair, rows), embedded(new, pair, rows)),
        recall_at_10=_recalls(one, new, maps),
        sides={modality: _side(one, modality, new, found) for modality, found in maps.items()},
    )


def _side(one: LearnedDataset, modality: str, new: ModalityHeads, found: Migration) -> Side:
    old, raw_NF = one.model_state.heads, _features(one.dataset)[modality]
    old_EI, new_EI = old.weights[modality], new.weights[modality]
    before_NE, after_NE = (heads.outputs(modality, raw_NF).double() for heads in (old, new))
    measured = measured_scores(Embedded(before_NE, before_NE), Embedded(after_NE, after_NE))
    return Side(
        PairScores(_own_moments(one, modality)).drift(
            PairWeights(old_EI, old_EI), PairWeights(old_EI, new_EI)
        ),
        measured.first_stored.against_old,
        found.rank,
        found.condition,
        found.exact,
        found.predicted_error,
        found.error_on_rows,
        measured_migration(found, modality, old, new, raw_NF),
    )


def _own_moments(one: LearnedDataset, modality: str) -> PairMoments:
    """Return moments of a modality's rows paired with themselves."""
    moments = one.remembered.read().moments
    own = moments.first if modality == one.dataset.pair.first else moments.second
    return PairMoments(own, own, own.sum_II)


def _features(dataset: Dataset) -> dict[str, Tensor]:
    """Return held-out raw features by modality."""
    rows = dataset.held_out.rows
    return dict(zip(dataset.pair.modalities, (rows.first_NI, rows.second_NJ), strict=True))


def _map(then: ModelState, modality: str, new: ModalityHeads) -> Migration:
    inputs = then.memory.inputs_of(modality)
    if inputs is None:
        raise LookupError(
            f"the version that learned a dataset of {modality!r} stores no moment of it"
        )
    return migration(inputs, then.heads.weights[modality], new.weights[modality])


def _recalls(
    one: LearnedDataset, new: ModalityHeads, maps: Mapping[str, Migration]
) -> dict[str, float]:
    """Return recall by kind of index. Queries use the new version, except for `both_old`."""
    pair, rows, old = one.dataset.pair, one.dataset.held_out.rows, one.model_state.heads
    sides = _features(one.dataset)
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
    """Return the share of queries whose ten best rows include the same item on either side."""
    best_NK = (queries_NE @ index_NE.mT).topk(min(_BEST, len(index_NE)), dim=1).indices
    hits_NK = torch.zeros_like(best_NK, dtype=torch.bool)
    for keys_N in (rows.first_keys_N, rows.second_keys_N):
        hits_NK |= keys_N[best_NK] == keys_N[:, None]
    return float(hits_NK.any(dim=1).double().mean())


if __name__ == "__main__":
    # The number of threads affects rounding, and small products are faster with one.
    torch.set_num_threads(1)
    sys.exit(main())
