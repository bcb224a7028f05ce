"""What is summed over all rows of a dataset: how to condition its features, and its moments.

Every function is a pass over the rows of this rank, and returns the same on every rank.
Shapes: B rows of a chunk, N all rows, F raw width, I and J widths of what the two heads read.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.model.heads import ModalityHeads, head_width, unit_rows, with_constant
from workers.model.rows import PairedRows
from workers.nullspace.conditioning import conditioning
from workers.nullspace.moments import (
    PairMoments,
    moment_about,
    no_pairs,
    no_rows,
)
from workers.train.data.rows import TrainingRows
from workers.train.distributed import (
    all_reduce_moment,
    all_reduce_pair_moments,
    barrier,
    broadcast,
)
from workers.train.run import Run


def prepared_rows(heads: ModalityHeads, pair: ModalityPair, raw: PairedRows) -> PairedRows:
    """Rows as the heads read them, on the device of the raw ones."""
    return replace(
        raw,
        first_NI=heads.prepare(pair.first, raw.first_NI),
        second_NJ=heads.prepare(pair.second, raw.second_NJ),
    )


def conditioned(
    spec: ModelSpec, heads: ModalityHeads, pair: ModalityPair, rows: TrainingRows, run: Run
) -> ModalityHeads:
    """The heads with the conditioning of modalities whose first dataset this is: one pass over the rows."""
    new = [modality for modality in pair.modalities if modality not in heads.conditioning]
    if not new:
        return heads
    run.watcher.enter("reading")
    totals = {name: no_rows(head_width(spec.widths[name])) for name in new}
    shifts: dict[str, Tensor] = {}
    for raw in chunks(rows, run):
        sides = dict(zip(pair.modalities, (raw.first_NI, raw.second_NJ), strict=True))
        for name in new:
            rows_NI = with_constant(unit_rows(sides[name]))
            shift_I = shifts.setdefault(name, _near_the_mean(rows_NI))
            totals[name] += moment_about(rows_NI, shift_I).cpu()
    made = {
        name: conditioning(all_reduce_moment(total, run.here)) for name, total in totals.items()
    }
    broadcast([part for each in made.values() for part in each.tensors.values()], run.here)
    return heads.conditioned(made)


def summed_halves(
    heads: ModalityHeads, pair: ModalityPair, rows: TrainingRows, run: Run
) -> tuple[PairMoments, PairMoments]:
    """The moments of the two halves of all rows (`PairedRows.halves`) as the heads read them.

    Products are of what rows differ by from a shift near their mean, see `moment_about`: features of some encoders
    hardly differ, and rounding of their products would be larger than their covariance.
    """
    own, other = (heads.weights[modality].shape[1] for modality in pair.modalities)
    totals = [no_pairs(own, other, run.device), no_pairs(own, other, run.device)]
    shifts: tuple[Tensor, Tensor] | None = None
    for raw in chunks(rows, run):
        read = prepared_rows(heads, pair, raw)
        if shifts is None:
            shifts = _near_the_mean(read.first_NI), _near_the_mean(read.second_NJ)
        for number, half in enumerate(read.halves()):
            # In place: the rows of a half are a copy.
            rests = half.first_NI.sub_(shifts[0]), half.second_NJ.sub_(shifts[1])
            totals[number] = totals[number].add_rows_(*rests)
    if shifts is not None:
        for total in totals:
            # Of this rank alone: another one has another shift.
            total.move_(*shifts)
    first, second = (all_reduce_pair_moments(total.cpu(), run.here) for total in totals)
    return first, second


def chunks(rows: TrainingRows, run: Run) -> Iterator[PairedRows]:
    """This rank's rows on its device, reported to the watcher.

    Ends with a barrier: ranks read independently, and take different times.
    """
    done, own = 0, len(rows) // run.here.size
    for raw in rows.chunks(run.here):
        yield raw.to(run.device)
        done += len(raw)
        run.watcher.rows_read(done, own)
    barrier(run.here)


def _near_the_mean(rows_NI: Tensor) -> Tensor:
    """The mean of some rows, 0 for the constant 1, which must not be shifted."""
    shift_I = rows_NI.mean(dim=0)
    shift_I[-1] = 0
    return shift_I
