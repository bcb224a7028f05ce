"""Rows that are prepared already, on their way into training: turned, and nothing else."""

from collections.abc import Mapping
from dataclasses import replace

from workers.methods.port import Lesson, Seen
from workers.model.pair import rotate
from workers.model.rows import PairedRows
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import pair_moments
from workers.train.rows.held import HeldRows
from workers.train.rows.port import TurnedRows


def seen(prepared: PairedRows) -> Seen:
    """What a method is told of rows that it has learned."""
    return Seen(pair_moments(prepared.first_NI, prepared.second_NJ), prepared)


def turned(lesson: Lesson, spaces: Mapping[str, UpdateSpace], prepared: PairedRows) -> TurnedRows:
    first, second = (spaces[modality] for modality in lesson.pair.modalities)

    def transform(rows: PairedRows) -> PairedRows:
        return replace(
            rows, first_NI=rotate(rows.first_NI, first), second_NJ=rotate(rows.second_NJ, second)
        )

    return TurnedRows(HeldRows(prepared), transform)
