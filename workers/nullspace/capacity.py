"""What a dataset would meet at a head, before it is trained.

Shapes: E width of the embeddings, I width of what the head reads (the constant 1 included).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.nullspace.mask import MaskRule
from workers.nullspace.moments import SecondMoment
from workers.nullspace.subspace import EigenBasis, eigenbasis

# If a smaller share of its energy is on free entries, a dataset teaches a head almost nothing.
_LITTLE = 0.02
# Familiarity was 0.20 or more between datasets of one real encoder (image, text and audio of
# shared/data/stream, kept energy 0.8 to 0.95), and at most 0.08 when its columns were shuffled.
_STRANGE = 0.15


@dataclass(frozen=True)
class HeadMoments:
    """Moments of a head's inputs (I × I) and of its partners' embeddings today (E × E)."""

    inputs: SecondMoment
    partners: SecondMoment

    def __add__(self, other: "HeadMoments") -> "HeadMoments":
        return HeadMoments(self.inputs + other.inputs, self.partners + other.partners)


@dataclass(frozen=True)
class Preflight:
    """What a dataset would meet at one head. Shares and distances are from 0 to 1.

    protected_share   its input energy inside the protected input span, the constant 1 included
    familiarity       how much more of its features (without the constant) lies in that span than of
                      random directions: 0 no more, 1 all. Low for another encoder
    moment_distance   see `moment_distance`, without the constant. High for other content too, so it is
                      a number to watch and not an alarm
    learnable_share   its own energy, inputs times partners, on free entries: an estimate of how much
                      of its gradient survives the mask, as if inputs and partners were independent
    free_share        free entries now, and `free_share_after` with this dataset's moments added

    `familiarity` and `moment_distance` are None without earlier data.
    """

    protected_share: float
    familiarity: float | None
    moment_distance: float | None
    learnable_share: float
    free_share: float
    free_share_after: float
    advice: tuple[str, ...]


def preflight(
    new: HeadMoments, earlier: HeadMoments | None, rule: MaskRule, kept_energy: float
) -> Preflight:
    """Compare a new dataset's moments with the earlier ones of a head; None if it has none.

    Partners' moments are of their embeddings under today's heads. Training moves the heads, so
    `free_share_after` is an estimate.

    Raises ValueError if `kept_energy` is not in (0, 1], without rows, for values that are not finite
    and if widths differ from the earlier ones.
    """
    _check(new, earlier, kept_energy)
    # Moments add up, so "after this dataset" is the mask of the sum.
    free_share_after = _free_share(new if earlier is None else earlier + new, rule, kept_energy)
    if earlier is None:
        # Nothing is protected yet: all entries are free, and all of the dataset's energy lies on them.
        return Preflight(0.0, None, None, 1.0, 1.0, free_share_after, ())
    # The mask that the method would use now, from earlier datasets alone.
    outputs, inputs = eigenbasis(earlier.partners), eigenbasis(earlier.inputs)
    free_EI = rule(outputs, inputs, kept_energy)
    # The new dataset's energy along the *earlier* directions: u_jᵀ S u_j / tr S and v_iᵀ D v_i / tr D.
    input_I, output_E = _shares(new.inputs, inputs), _shares(new.partners, outputs)
    # The protected input span: the leading directions that hold `kept_energy` of earlier inputs.
    rank = inputs.rank_at(kept_energy)
    protected_share = float(input_I[:rank].sum())
    familiarity = _familiarity(new.inputs, protected_share, rank / inputs.width)
    # Σ_ij (share of output i) · (1 if M_ij is free) · (share of input j): a gradient is a sum of outer
    # products of an output and an input, so these products are where its energy is expected.
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
        ),
    )


def moment_distance(one: SecondMoment, other: SecondMoment) -> float:
    """Half the trace norm of the difference of two moments of trace 1: from 0 to 1.

    It is the largest difference, over all subspaces, between the shares of energy that the two have
    there: 0 for moments that are multiples of each other, 1 for orthogonal spans, independent of the
    scales of the features. (The cosine of the matrices would depend on little but the leading
    direction, the mean.) 0 if both are zero, 1 if one is.
    """
    traces = [float(moment.sum_II.trace()) for moment in (one, other)]
    if min(traces) <= 0:
        return float(max(traces) > 0)
    # ½ ‖S / tr S − T / tr T‖₁, as between two probability distributions.
    # Scaled to trace 1, so that neither the number of rows nor their lengths matter.
    change_II = one.sum_II / traces[0] - other.sum_II / traces[1]
    change_II = (change_II + change_II.mT) / 2
    # The trace norm of a symmetric matrix is the sum of its absolute eigenvalues. Here they add up to
    # zero, so half of that sum is the sum of the positive ones.
    half = torch.linalg.eigvalsh(change_II.to("cpu", torch.float64)).abs().sum() / 2
    return min(float(half), 1.0)


def _free_share(moments: HeadMoments, rule: MaskRule, kept_energy: float) -> float:
    # The same rule as in training: V, r from the partners' embeddings, U, s from the inputs.
    free_EI = rule(eigenbasis(moments.partners), eigenbasis(moments.inputs), kept_energy)
    return float(free_EI.double().mean())


def _shares(moment: SecondMoment, basis: EigenBasis) -> Tensor:
    """Share of a moment's energy along each direction of a basis; zeros if it has no energy."""
    sum_II = moment.sum_II.to("cpu", torch.float64)
    # uᵀ S u for each column u of the basis.
    energy_I = ((basis.vectors_II.mT @ sum_II) * basis.vectors_II.mT).sum(dim=1).clamp_min(0)
    total = energy_I.sum()
    return energy_I / total if total > 0 else energy_I


def _familiarity(inputs: SecondMoment, protected_share: float, chance: float) -> float:
    """1 minus the features' energy outside of the span, relative to that of random directions.

    The constant lies inside of the span almost completely, since every earlier row has it, so the
    energy outside is that of the features alone. Random directions leave 1 − rank / width outside.
    """
    # Energy of the features alone, and what of it lies outside of the span.
    features = float(_features(inputs).sum_II.trace())
    outside = (1 - protected_share) * float(inputs.sum_II.trace())
    # A span of the full width contains everything, as does one for features that are all zero.
    if chance >= 1 or features <= 0:
        return 1.0
    # Outside by what is there / outside by what random directions would leave there.
    return min(max(1 - outside / features / (1 - chance), 0.0), 1.0)


def _features(inputs: SecondMoment) -> SecondMoment:
    """The moment without the constant 1, which all rows share and which would halve every distance."""
    # Its row and column are the last ones.
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
        "need not be protected."
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
            "The features have almost nothing in common with the earlier ones of this modality "
            f"(familiarity {familiarity:.2f} of 1): make sure that the same encoder made them."
        )
