"""What a dataset would meet and do, before it is trained: numbers, and sentences about them.

Shapes: B rows, F width of the raw feature, I width of what a head reads, E of the embeddings.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.capacity import FULL_BELOW
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import EigenBasis, eigenbasis

# Outputs, inputs and kept energy to free entries (bool, E × I): one of the rules of mask.py.
MaskRule = Callable[[EigenBasis, EigenBasis, float], Tensor]

# With a smaller share of itself on free entries a dataset teaches a head almost nothing.
_LITTLE = 0.02
# Familiarity was 0.20 or more between datasets of one real encoder (image, text and audio of
# shared/data/stream, kept energy 0.8 to 0.95), and at most 0.08 when its columns were shuffled.
_STRANGE = 0.15
# Rows are multiples of each other if their cosines are 1 to float32 and float16 rounding.
_PARALLEL = 1e-6


@dataclass(frozen=True)
class HeadMoments:
    """What one head reads and where it sends it: its inputs, its partners' embeddings now."""

    inputs: SecondMoment
    partners: SecondMoment

    def __add__(self, other: "HeadMoments") -> "HeadMoments":
        return HeadMoments(self.inputs + other.inputs, self.partners + other.partners)


@dataclass(frozen=True)
class Preflight:
    """What a dataset would meet at one head. Shares and distances from 0 to 1.

    `protected_share`: its input energy inside the protected input span, the constant 1 counted;
    `familiarity`: how much more of its features (the constant apart) lies there than of random
    directions, 0: no more, 1: all of them; None without earlier data. Low for another encoder;
    `moment_distance`: see `moment_distance`, the constant left out, None without earlier data.
    High for other content too, so it is a number to follow and no alarm;
    `learnable_share`: its own energy, inputs times partners, on free entries: an estimate of how
    much of its gradient survives the mask, as if inputs and partners were independent;
    `free_share` and `free_share_after`: free entries now and with this dataset's moments added.
    """

    protected_share: float
    familiarity: float | None
    moment_distance: float | None
    learnable_share: float
    free_share: float
    free_share_after: float
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What is odd about raw rows.

    Counts of values (`nan`, `infinite`), rows (`zero_rows`; `duplicate_rows` equal an earlier
    row) and columns (`constant_columns`); the last three are of the finite rows. `rank_one`: all
    rows are multiples of one.
    """

    rows: int
    width: int
    expected_width: int
    nan: int
    infinite: int
    zero_rows: int
    duplicate_rows: int
    constant_columns: int
    rank_one: bool

    @property
    def usable(self) -> bool:
        """Whether these rows may be trained on at all; what else is odd is only advice."""
        broken = self.nan + self.infinite + self.zero_rows
        return self.rows > 0 and broken == 0 and self.width == self.expected_width

    @property
    def advice(self) -> tuple[str, ...]:
        """A sentence for everything that is odd."""
        return tuple(_advice_on_rows(self))


def preflight(
    new: HeadMoments, earlier: HeadMoments | None, rule: MaskRule, kept_energy: float
) -> Preflight:
    """Hold a new dataset's moments against the earlier ones of a head; None: there are none.

    Partners' moments are of their embeddings under today's heads, so what is said about
    afterwards is an expectation: training moves the heads.

    Raises ValueError if kept energy is not in (0, 1], without rows, for values that are not
    finite and if widths differ from the earlier ones.
    """
    _check(new, earlier, kept_energy)
    free_share_after = _free_share(new if earlier is None else earlier + new, rule, kept_energy)
    if earlier is None:
        advice = tuple(_advice_on_afterwards(free_share_after))
        return Preflight(0.0, None, None, 1.0, 1.0, free_share_after, advice)
    outputs, inputs = eigenbasis(earlier.partners), eigenbasis(earlier.inputs)
    free_EI = rule(outputs, inputs, kept_energy)
    input_I, output_E = _shares(new.inputs, inputs), _shares(new.partners, outputs)
    rank = inputs.rank_at(kept_energy)
    protected_share = float(input_I[:rank].sum())
    familiarity = _familiarity(new.inputs, protected_share, rank / inputs.width)
    learnable_share = float(output_E @ free_EI.double() @ input_I)
    return Preflight(
        protected_share,
        familiarity,
        moment_distance(_features(earlier.inputs), _features(new.inputs)),
        learnable_share,
        float(free_EI.double().mean()),
        free_share_after,
        (
            *_advice_on_learning(free_EI, learnable_share),
            *_advice_on_familiarity(familiarity),
            *_advice_on_afterwards(free_share_after),
        ),
    )


def moment_distance(one: SecondMoment, other: SecondMoment) -> float:
    """Half the trace norm of the difference of two moments of trace 1: from 0 to 1.

    It is the largest difference, over all subspaces, between the shares of energy that the two
    hold there: 0 for moments that are multiples of each other, 1 for orthogonal spans, and the
    scales of the features do not matter. (The cosine of the matrices would see little but the
    leading direction, the mean.) 0 if both are zero, 1 if one is.
    """
    traces = [float(moment.sum_II.trace()) for moment in (one, other)]
    if min(traces) <= 0:
        return float(max(traces) > 0)
    change_II = one.sum_II / traces[0] - other.sum_II / traces[1]
    change_II = (change_II + change_II.mT) / 2
    half = torch.linalg.eigvalsh(change_II.to("cpu", torch.float64)).abs().sum() / 2
    return min(float(half), 1.0)


def check_rows(raw_BF: Tensor, expected_width: int) -> Findings:
    """Look at raw encoder outputs (any float type) of a modality that is `expected_width` wide.

    Raises ValueError if they are not a matrix.
    """
    if raw_BF.ndim != 2:
        raise ValueError(f"features of shape {tuple(raw_BF.shape)}, they must be rows × width")
    rows_BF = raw_BF.to(torch.promote_types(raw_BF.dtype, torch.float32))
    finite_BF = rows_BF[rows_BF.isfinite().all(dim=1)]
    nonzero_BF = finite_BF[(finite_BF != 0).any(dim=1)]
    return Findings(
        rows=raw_BF.shape[0],
        width=raw_BF.shape[1],
        expected_width=expected_width,
        nan=int(rows_BF.isnan().sum()),
        infinite=int(rows_BF.isinf().sum()),
        zero_rows=len(finite_BF) - len(nonzero_BF),
        duplicate_rows=_duplicates(finite_BF),
        constant_columns=_constant_columns(finite_BF),
        rank_one=_rank_one(nonzero_BF),
    )


def _duplicates(rows_BF: Tensor) -> int:
    if len(rows_BF) < 2 or rows_BF.shape[1] == 0:
        return 0
    return len(rows_BF) - len(torch.unique(rows_BF, dim=0))


def _constant_columns(rows_BF: Tensor) -> int:
    """Of one row nothing can be said."""
    if len(rows_BF) < 2:
        return 0
    return int((rows_BF == rows_BF[0]).all(dim=0).sum())


def _rank_one(nonzero_BF: Tensor) -> bool:
    """At least two rows, all parallel to the first. Scaled first: squares of float32 overflow."""
    if len(nonzero_BF) < 2:
        return False
    scaled_BF = nonzero_BF / nonzero_BF.abs().amax(dim=1, keepdim=True)
    unit_BF = torch.nn.functional.normalize(scaled_BF, dim=1)
    return bool(((unit_BF @ unit_BF[0]).abs() >= 1 - _PARALLEL).all())


def _free_share(moments: HeadMoments, rule: MaskRule, kept_energy: float) -> float:
    free_EI = rule(eigenbasis(moments.partners), eigenbasis(moments.inputs), kept_energy)
    return float(free_EI.double().mean())


def _shares(moment: SecondMoment, basis: EigenBasis) -> Tensor:
    """Share of a moment's energy along each direction of a basis; zeros if it has none."""
    sum_II = moment.sum_II.to("cpu", torch.float64)
    energy_I = ((basis.vectors_II.mT @ sum_II) * basis.vectors_II.mT).sum(dim=1).clamp_min(0)
    total = energy_I.sum()
    return energy_I / total if total > 0 else energy_I


def _familiarity(inputs: SecondMoment, protected_share: float, chance: float) -> float:
    """What lies outside the span, as a share of the features alone, against what chance leaves.

    The constant lies inside as good as wholly, since every earlier row had it.
    """
    features = float(_features(inputs).sum_II.trace())
    outside = (1 - protected_share) * float(inputs.sum_II.trace())
    if chance >= 1 or features <= 0:
        return 1.0
    return min(max(1 - outside / features / (1 - chance), 0.0), 1.0)


def _features(inputs: SecondMoment) -> SecondMoment:
    """Without the constant 1, which all rows share and which would halve every distance."""
    return SecondMoment(inputs.count, inputs.sum_II[:-1, :-1])


def _check(new: HeadMoments, earlier: HeadMoments | None, kept_energy: float) -> None:
    if not 0 < kept_energy <= 1:
        raise ValueError(f"kept_energy is {kept_energy}, it must be above 0 and at most 1")
    for moment in (new.inputs, new.partners):
        if moment.count < 1:
            raise ValueError("the dataset has 0 rows")
        if not moment.sum_II.isfinite().all():
            raise ValueError("the dataset's moments hold values that are not finite")
    if earlier is None:
        return
    for side, now, before in (
        ("inputs", new.inputs, earlier.inputs),
        ("partners", new.partners, earlier.partners),
    ):
        if now.sum_II.shape != before.sum_II.shape:
            widths = (len(now.sum_II), len(before.sum_II))
            raise ValueError(f"{side} are {widths[0]} wide, those of earlier datasets {widths[1]}")


def _advice_on_learning(free_EI: Tensor, learnable_share: float) -> Iterator[str]:
    blocked, entries = int((~free_EI).sum()), free_EI.numel()
    cure = (
        "Use a larger width or a smaller kept_energy, or remove the moments of a dataset that "
        "need not be protected any more."
    )
    if blocked == entries:
        yield f"Nothing can be learned: all {entries:,} entries of this head are blocked. {cure}"
    elif learnable_share < _LITTLE:
        yield (
            f"Almost nothing can be learned: {blocked:,} of {entries:,} entries of this head are "
            f"blocked, and they hold {1 - learnable_share:.1%} of this dataset's energy. {cure}"
        )


def _advice_on_familiarity(familiarity: float) -> Iterator[str]:
    if familiarity < _STRANGE:
        yield (
            "The features have as good as nothing in common with the earlier ones of this modality "
            f"(familiarity {familiarity:.2f} of 1): make sure that the same encoder made them."
        )


def _advice_on_afterwards(free_share_after: float) -> Iterator[str]:
    if free_share_after < FULL_BELOW:
        yield (
            f"After this dataset {free_share_after:.1%} of this head's entries will be free: "
            "later datasets will learn little."
        )


def _advice_on_rows(found: Findings) -> Iterator[str]:
    if found.rows == 0:
        yield "There are no rows."
    if found.width != found.expected_width:
        yield (
            f"Features are {found.width} wide, but {found.expected_width} in this modality: "
            "use the encoder that it was declared with."
        )
    if found.nan or found.infinite:
        yield (
            f"{found.nan:,} values are NaN and {found.infinite:,} infinite: remove their rows "
            "(float16 overflows above 65,504)."
        )
    if found.zero_rows:
        yield f"{found.zero_rows:,} rows are all zeros and have no direction: remove them."
    yield from _advice_on_content(found)


def _advice_on_content(found: Findings) -> Iterator[str]:
    if found.duplicate_rows:
        yield (
            f"{found.duplicate_rows:,} of {found.rows:,} rows repeat an earlier one: they teach "
            "less than their number."
        )
    if found.constant_columns:
        yield (
            f"{found.constant_columns:,} of {found.width:,} columns are constant and carry "
            "nothing: is the encoder set up as it was meant to be?"
        )
    if found.rank_one:
        yield "All rows are multiples of one row: a head can learn one direction from them."
