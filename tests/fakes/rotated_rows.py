"""Training rows from prepared rows: rotated, without conditioning."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from workers.methods.method import DatasetStatistics, TrainingContext
from workers.model.heads import PairedRows
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import pair_moments
from workers.train.rows import RotatedRows, RowsInMemory


def seen(prepared: PairedRows) -> DatasetStatistics:
    """Learned rows, in the form that a method gets."""
    return DatasetStatistics(pair_moments(prepared.first_NI, prepared.second_NJ), prepared)


def rotate(prepared_NI: Tensor, space: UpdateSpace) -> Tensor:
    """Rows in the input coordinates of a head."""
    return prepared_NI @ space.inputs.vectors_II.to(prepared_NI)


def rotated(
    context: TrainingContext, spaces: Mapping[str, UpdateSpace], prepared: PairedRows
) -> RotatedRows:
    first, second = (spaces[modality] for modality in context.pair.modalities)

    def transform(rows: PairedRows) -> PairedRows:
        return replace(
            rows, first_NI=rotate(rows.first_NI, first), second_NJ=rotate(rows.second_NJ, second)
        )

    return RotatedRows(RowsInMemory(prepared), transform)
