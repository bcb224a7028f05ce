"""Jobs that read no rows: solve the heads again without a dataset (unlearn), or with those of another model (merge).

Heads of the policy improve are a function of the sums of all datasets, and sums can be added and taken
back to the bit (workers/nullspace/centred.py). So the result is the version that a model would have
which never saw the dataset, or which learned those of both: their scores differ by the rounding of
one rotation. Every rank reads; rank 0 solves and writes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import save

from cmcl.contract.encoder import EncoderIdentity
from cmcl.contract.errors import CannotCombine
from cmcl.contract.job import ErasedRow, JobSpec, row_digest
from cmcl.contract.version import (
    Erasure,
    LearnedDataset,
    VersionReport,
    datasets_to_measure,
    datasets_to_merge,
)
from cmcl.storage.object_store import ObjectStore
from cmcl.storage.versions import write_blob
from workers.files.shards import Rows, Scratch
from workers.methods.method import Solved, TrainingContext
from workers.methods.registry import method_for
from workers.model.artifact import save_centred_moments, save_halves
from workers.model.heads import ModalityHeads, PairedRows, initial_heads
from workers.model.memory import Memory, in_order
from workers.nullspace.centred import dataset_moments
from workers.nullspace.certificate import attainable
from workers.nullspace.moments import pair_moments
from workers.train.agreement import halves_of
from workers.train.certify import Certificate, certificates
from workers.train.dataset import paired_rows, read_rows
from workers.train.distributed import all_gather_dict, barrier, rank_share, when_leader_is_done
from workers.train.evaluation import (
    UNREADABLE,
    MeasuredVersion,
    evaluate_learned,
    held_out_part,
    measure_only,
    overlaps,
)
from workers.train.learn import ModelState, check_finite, exact_rows, projections_of_halves
from workers.train.progress import Reporter
from workers.train.run import Run
from workers.train.versions import (
    Parent,
    read_dataset_sums,
    read_halves,
    read_known,
    read_parent,
    read_past_datasets,
    read_projections,
    solution,
    version_manifest,
    write_files,
    write_once,
)


@dataclass(frozen=True)
class Sources:
    """What the new version is solved from.

    `heads`: of the parent; the solution is turned onto them as far as `aligned_by` has features. `memory` and `learned`: of the new version. `past`: by the version
    that it is compared with, the datasets to certify.
    """

    heads: ModalityHeads
    aligned_by: Memory
    memory: Memory
    learned: tuple[LearnedDataset, ...]
    encoders: dict[str, EncoderIdentity]
    past: tuple[Parent, ...]
    unlearned: LearnedDataset | None = None


def solve_again(
    store: ObjectStore, spec: JobSpec, run: Run, reporter: Reporter, scratch: Scratch
) -> None:
    """Write the candidate of a job that reads no rows.

    `max_drift` does not shorten the step: heads half-way to the parent's would still hold what was
    unlearned. Certificates say how far scores moved, and the gate judges.
    """
    here = run.here
    reporter.enter("reading")
    parent = read_parent(store, spec)
    if spec.erases is not None:
        sources = _without_row(store, spec, spec.erases, parent)
    elif spec.unlearns:
        sources = _without(store, spec, parent)
    else:
        sources = _with_other(store, spec, parent)
    barrier(here)

    reporter.enter("training")
    solved = when_leader_is_done(lambda: _solved(spec, sources), here)
    state = ModelState(sources.heads.replaced(solved.weights), sources.memory)

    reporter.enter("certifying")
    own: dict[str, Certificate] = {}
    measured = datasets_to_measure(spec, sources.learned)
    names = {line.dataset for line in measured}
    compared = list[tuple[LearnedDataset, ModalityHeads]]()
    for version in sources.past:
        lines = [line for line in version.learned if line.dataset in names]
        past = rank_share(read_past_datasets(store, version, lines), here)
        own |= certificates(past, version.model_state.heads, state.heads)
        compared += [(line, version.model_state.heads) for line in lines]
    evaluation = evaluate_learned(store, compared, state.heads, here, scratch)
    certified = all_gather_dict(own, here)
    if not here.is_leader:
        return

    pairs = tuple(line.pair for line in sources.learned)
    measures = MeasuredVersion(spec.version, state.heads, pairs, sources.encoders)
    report = VersionReport(
        final_loss=solved.final_loss,
        updates=solved.updates,
        temperature=solved.temperature,
        ranks=here.size,
        drift={dataset: each.drift for dataset, each in certified.items()},
        quality={dataset: each.quality for dataset, each in certified.items()},
        overlap=overlaps(certified, evaluation, sources.learned),
        solution=solution(solved, state),
        evaluation=evaluation.now,
        score_errors=evaluation.score_errors,
        not_evaluated=evaluation.missing,
        evaluation_only=measure_only(store, spec.evaluation_only, measures, scratch),
        seconds={**reporter.seconds},
    )
    reporter.enter("writing")
    files = write_files(store, state, spec, parent)
    manifest = version_manifest(spec, files, sources.learned, sources.encoders, report)
    write_once(store, manifest.model_copy(update={"unlearned": sources.unlearned}))


def _solved(spec: JobSpec, sources: Sources) -> Solved:
    pair = sources.learned[0].pair
    context = TrainingContext(
        sources.heads, sources.aligned_by, {}, pair, spec.spec.training, spec.spec.seed
    )
    solved = method_for(spec.spec).solve(context, sources.memory)
    check_finite(solved, spec.spec)
    return solved


# --- Unlearn ------------------------------------------------------------------------------------


def _without(store: ObjectStore, spec: JobSpec, parent: Parent) -> Sources:
    """The parent without one dataset. Raises CannotCombine, StoreDamaged."""
    line = next((each for each in parent.learned if each.dataset == spec.unlearns), None)
    if line is None:
        raise CannotCombine(f"version {parent.ref} has not learned dataset {spec.unlearns}")
    rest = tuple(each for each in parent.learned if each is not line)
    if not rest:
        raise CannotCombine(f"dataset {line.name!r} cannot be unlearned: it is the only one")
    left = {modality for each in rest for modality in each.pair.modalities}
    before, start = parent.model_state, initial_heads(spec.spec).weights
    memory = _memory_without(store, parent, line)
    learned = tuple(_measured_from(each, line.version, spec.version) for each in rest)
    known = {digest for each in rest for digest in each.encoders.values()}
    return Sources(
        # Modalities without a dataset are as they are before their first one.
        heads=before.heads.without(
            {name: start[name] for name in line.pair.modalities if name not in left}
        ),
        # Not the parent's: what is unlearned does not even turn the axes.
        aligned_by=memory,
        memory=memory,
        learned=learned,
        encoders={name: each for name, each in parent.encoders.items() if each.digest in known},
        past=(replace(parent, learned=rest),),
        unlearned=line,
    )


def _memory_without(store: ObjectStore, parent: Parent, line: LearnedDataset) -> Memory:
    """The parent's memory without what the dataset adds to it. Raises CannotCombine, StoreDamaged."""
    sums, memory = read_dataset_sums(store, line), parent.model_state.memory
    try:
        return memory.without_sums(line.pair, sums, line.ridges, line.significant_directions)
    except (KeyError, ValueError) as error:
        raise CannotCombine(f"the memory of version {parent.ref}: {error}") from error


def _measured_from(line: LearnedDataset, unlearned_in: int, version: int) -> LearnedDataset:
    """The line with a reference that has never seen the unlearned dataset, which `unlearned_in` learned.

    Otherwise the heads of versions that saw it would be needed permanently.
    """
    if (line.reference or line.version) < unlearned_in:
        return line
    return line.model_copy(update={"reference": version})


def _without_row(store: ObjectStore, spec: JobSpec, row: ErasedRow, parent: Parent) -> Sources:
    """The parent without one row of a dataset. Raises CannotCombine, StoreDamaged."""
    line = next((each for each in parent.learned if each.dataset == row.dataset), None)
    if line is None or line.exact_sums is None:
        raise CannotCombine(f"version {parent.ref} has no exact sums of dataset {row.dataset}")
    halves, digests = read_halves(store, line)
    first, second = (np.array(side, np.float32) for side in (row.first, row.second))
    digest = row_digest(line.dataset, first.tobytes(), second.tobytes())
    one = paired_rows(Rows(first[None], second[None], None))
    _check_not_held_out(store, line, one)
    is_row_N = digests == int.from_bytes(bytes.fromhex(digest[:16]), "big", signed=True)
    copies = int(is_row_N.sum())
    if not copies:
        raise CannotCombine(
            f"dataset {line.name!r} ({line.dataset}) has learned no row with these features to the bit (digest {digest}), "
            "or it was erased: compare them with the row of its shard"
        )
    raw = one.at(torch.zeros(copies).long())
    heads = parent.model_state.heads
    for number, own in enumerate(exact_rows(heads, line.pair, raw).halves()):
        halves[number] -= pair_moments(own.first_NI, own.second_NJ)
    projections = read_projections(store, line)
    for name, own_2II in zip(line.pair.modalities, projections_of_halves(raw), strict=True):
        projections[name] -= own_2II
    moments = halves[0] + halves[1]
    if moments.count < spec.spec.fewest_rows:
        raise CannotCombine(f"too few rows are left of dataset {line.name!r}; unlearn it")
    choice = method_for(spec.spec).choose(line.pair, (halves[0], halves[1]))
    ridges = choice.by_modality(line.pair.modalities, spec.spec.aligned(line.pair))
    new, rest = dataset_moments(moments), _memory_without(store, parent, line)
    memory = rest.with_sums(line.pair, new, ridges, choice.significant)
    # Every rank computes the same bytes, whose name is their digest.
    after = write_blob(store, save_halves(halves, digests[~is_row_N]))
    receipt = Erasure(
        **row.model_dump(include={"requested_at", "requested_by"}),
        row=digest,
        copies=copies,
        before=line.exact_sums.sha256,
        after=after.sha256,
        version=spec.version,
        job=spec.job,
    )
    changes = {
        "rows": moments.count,
        "moments": write_blob(store, save_centred_moments(in_order(line.pair, new))),
        "projections": write_blob(store, save(projections)),
        "exact_sums": after,
        "ridges": ridges,
        "significant_directions": choice.significant,
        "halves": halves_of(choice),
        "attainable": attainable(moments, width=spec.spec.width),
        "erased": (*line.erased, receipt),
    }
    changed = line.model_copy(update=changes)
    lines = (changed if each is line else each for each in parent.learned)
    return Sources(
        heads=heads,
        aligned_by=memory,
        memory=memory,
        learned=tuple(_measured_from(each, line.version, spec.version) for each in lines),
        encoders=dict(parent.encoders),
        past=(parent,),
    )


def _check_not_held_out(store: ObjectStore, line: LearnedDataset, row: PairedRows) -> None:
    """Held-out rows are measured and not learned, but kept. Raises CannotCombine if the row is among them."""
    keys_2 = np.array([int(row.first_keys_N[0]), int(row.second_keys_N[0])])
    do_this = "unlearn the dataset, and post it again without the row"
    try:
        shards = held_out_part(store, line.dataset).evaluation_shards
        held_out = read_rows(shards, 0, sum(shard.rows for shard in shards))
        is_held_out = any((records.keys_B2 == keys_2).all(1).any() for records in held_out)
    except UNREADABLE as error:
        raise CannotCombine(
            f"whether dataset {line.name!r} holds out the row cannot be read: {error}. Restore these rows, or {do_this}"
        ) from error
    if is_held_out:
        raise CannotCombine(f"the row is held out of dataset {line.name!r}: {do_this}")


# --- Merge --------------------------------------------------------------------------------------


def _with_other(store: ObjectStore, spec: JobSpec, parent: Parent) -> Sources:
    """The parent with the datasets of another version that it does not have. Raises CannotCombine."""
    if spec.merges is None:
        raise CannotCombine(f"job {spec.job} says neither what to unlearn nor what to merge")
    other = read_known(store, spec.merges, spec.spec)
    _check_features(parent, other)
    new = datasets_to_merge(parent.learned, other.learned)
    if not new:
        raise CannotCombine(f"version {parent.ref} has every dataset of {spec.merges}")
    memory = parent.model_state.memory
    for line in new:
        sums = read_dataset_sums(store, line)
        memory = memory.with_sums(line.pair, sums, line.ridges, line.significant_directions)
    joined = (line.model_copy(update={"version": spec.version, "reference": None}) for line in new)
    ours, theirs = parent.model_state.heads, other.model_state.heads
    return Sources(
        heads=ours.conditioned(theirs.conditioning),
        aligned_by=parent.model_state.memory,
        memory=memory,
        learned=(*parent.learned, *joined),
        encoders=dict(other.encoders) | dict(parent.encoders),
        past=(parent, replace(other, learned=new)),
    )


def _check_features(parent: Parent, other: Parent) -> None:
    for name in sorted(parent.encoders.keys() & other.encoders.keys()):
        if difference := other.encoders[name].difference(parent.encoders[name]):
            raise CannotCombine(f"the encoders of {name!r} differ: {difference}")
    ours, theirs = parent.model_state.heads, other.model_state.heads
    for name in sorted(ours.conditioning.keys() & theirs.conditioning.keys()):
        if not ours.conditioning[name].equals(theirs.conditioning[name]):
            raise CannotCombine(
                f"{parent.ref} and {other.ref} centre the features of {name!r} by different first datasets: branch one "
                "model from the other once that has learned the modality, or create both with centred: false"
            )
