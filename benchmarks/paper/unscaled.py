"""The published update around any method that trains on rows, and features with their lengths.

The product learns from directions: features at unit length, InfoNCE in both directions, a constant rate. The
published code learns from lengths too, in one direction, with a rate that falls linearly to zero and gradients
clipped to norm 1. Both are here, so that the product needs no setting that only a comparison would use
(docs/decisions/0035-the-paper-is-reproduced-around-the-product.md).

Shapes: B rows of a batch, N rows, F width of a feature, E width of the embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.paper.features import EvaluationRows, StepData
from benchmarks.paper.protocol import GRADIENT_NORM
from cmcl.contract.model import ModelSpec
from workers.methods.method import (
    Batch,
    DatasetStatistics,
    Method,
    MethodState,
    Solved,
    State,
    TrainingContext,
    UpdateRule,
)
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.pair import PairInEigenCoordinates
from workers.nullspace.conditioning import Conditioning
from workers.nullspace.mask import UpdateSpace
from workers.nullspace.moments import PairMoments
from workers.train.learn import ModelState

# A row as long as the longest would have no length left for the last coordinate; rounding could make it NaN.
_ROOM = 1 + 1e-6


@dataclass(frozen=True)
class UnscaledFeatures(Conditioning):
    """In place of the conditioning: x itself, of the unit row [x, √(R² − |x|²)] / R.

    Every row of `with_lengths` has the length R, so scaling to unit length loses nothing.
    """

    radius: float = 1.0

    def to(self, device: torch.device) -> "UnscaledFeatures":
        """Nothing to move: it has no numbers that are used."""
        return self

    def __call__(self, unit_BF: Tensor) -> Tensor:
        """Raw features (B × F)."""
        return unit_BF[:, :-1] * self.radius


def radii(steps: Sequence[StepData]) -> dict[str, float]:
    """Return by modality the length R, a little more than that of the longest row."""
    found: dict[str, float] = {}
    for data in steps:
        training, test = data.training, data.test
        sides = [
            (data.step.first, (training.first_NI, test.first_NF)),
            (data.step.second, (training.second_NJ, test.second_NF)),
        ]
        if test.texts_CF is not None:
            sides.append(("text", (test.texts_CF, test.texts_CF)))
        for modality, parts in sides:
            longest = max(float(part.norm(dim=1).max()) for part in parts)
            found[modality] = max(found.get(modality, 0.0), longest * _ROOM)
    return found


def with_lengths(rows_NF: Tensor, radius: float) -> Tensor:
    """[x, √(R² − |x|²)] (N × (F + 1)), each of length R."""
    rest_N = (radius**2 - rows_NF.double().square().sum(dim=1)).clamp_min(0).sqrt()
    return torch.cat([rows_NF, rest_N[:, None].to(rows_NF)], dim=1)


def unscaled_steps(steps: Sequence[StepData], by_modality: Mapping[str, float]) -> list[StepData]:
    """The steps with the lengths of their rows, and with rows that are positives of themselves alone.

    The published loss knows no repeated text: every other row of a batch is a negative.
    """
    return [_unscaled(data, by_modality) for data in steps]


def _unscaled(data: StepData, by_modality: Mapping[str, float]) -> StepData:
    first, second = by_modality[data.step.first], by_modality[data.step.second]
    number_N = torch.arange(len(data.training))
    training = PairedRows(
        with_lengths(data.training.first_NI, first),
        with_lengths(data.training.second_NJ, second),
        number_N,
        number_N,
    )
    test = data.test
    texts_CF = test.texts_CF
    if texts_CF is not None:
        texts_CF = with_lengths(texts_CF, by_modality["text"])
    tested = EvaluationRows(
        with_lengths(test.first_NF, first),
        with_lengths(test.second_NF, second),
        texts_CF,
        test.classes_N,
        test.queries,
    )
    return replace(data, training=training, test=tested)


def published_start(spec: ModelSpec, by_modality: Mapping[str, float]) -> ModelState:
    """Heads as published: the identity and a bias of zero, on features as they are.

    `spec.widths`: of the features with their lengths, F + 1.
    """
    weights, conditioning = {}, {}
    for modality, width in spec.widths.items():
        weights[modality] = torch.cat(
            [torch.eye(spec.width, width - 1), torch.zeros(spec.width, 1)], dim=1
        )
        conditioning[modality] = UnscaledFeatures(
            torch.zeros(width), torch.zeros(0, 0), by_modality[modality]
        )
    return ModelState(ModalityHeads(weights, conditioning))


@dataclass(frozen=True)
class PublishedUpdate(Method):
    """`inner` with the published loss, rate and clipping. `updates`: of the dataset that is trained."""

    needs_all_rows = True

    inner: Method
    updates: int

    def start(
        self, context: TrainingContext, halves: tuple[PairMoments, PairMoments]
    ) -> Mapping[str, Tensor]:
        """See Method. What the method would solve is trained, as published."""
        found = self.inner.start(context, halves)
        return {} if isinstance(found, Solved) else found

    def update_spaces(self, context: TrainingContext) -> Mapping[str, UpdateSpace]:
        """See Method."""
        return self.inner.update_spaces(context)

    def update_rule(self, context: TrainingContext, pair: PairInEigenCoordinates) -> UpdateRule:
        """See Method."""
        inner = self.inner.update_rule(context, pair)
        return _PublishedRule(inner, pair, context.training.temperature, self.updates)

    def finish(self, context: TrainingContext, trained: ModalityHeads) -> Mapping[str, Tensor]:
        """See Method."""
        return self.inner.finish(context, trained)

    def next_state(
        self, context: TrainingContext, trained: ModalityHeads, statistics: DatasetStatistics
    ) -> MethodState:
        """See Method."""
        return self.inner.next_state(context, trained, statistics)


class _PublishedRule(UpdateRule):
    def __init__(
        self, inner: UpdateRule, pair: PairInEigenCoordinates, temperature: float, updates: int
    ) -> None:
        self._inner, self._pair, self._temperature = inner, pair, temperature
        self._updates, self._done = updates, 0
        self._before = [change_EI.detach().clone() for change_EI in pair.changes]

    def backward(self, batch: Batch) -> Tensor:
        def loss() -> Tensor:
            return one_direction(self._pair, batch.rows, self._temperature)

        found = self._inner.backward(replace(batch, loss=loss))
        nn.utils.clip_grad_norm_(self._pair.changes, GRADIENT_NORM)
        for before_EI, change_EI in zip(self._before, self._pair.changes, strict=True):
            before_EI.copy_(change_EI.detach())
        return found

    @torch.no_grad()
    def after_update(self, learning_rate: float) -> None:
        """Shorten the step by the share of updates that are left.

        Step and decay of AdamW are proportional to its rate, and its state does not depend on it: this is
        AdamW with a rate that falls linearly to zero.
        """
        self._inner.after_update(learning_rate)
        left = 1 - self._done / self._updates
        self._done += 1
        for before_EI, change_EI in zip(self._before, self._pair.changes, strict=True):
            change_EI.copy_(torch.lerp(before_EI, change_EI, left))

    def state(self) -> State:
        return {**self._inner.state(), "published_done": torch.tensor(self._done)}

    def restore(self, state: State) -> None:
        self._done = int(state["published_done"])
        self._inner.restore(state)


def one_direction(pair: PairInEigenCoordinates, rows: PairedRows, temperature: float) -> Tensor:
    """InfoNCE from the first modality to the second: the partner of a row is its only positive."""
    first_BE, second_BE = pair(rows.first_NI, rows.second_NJ)
    scores_BB = first_BE @ second_BE.mT / temperature
    return nn.functional.cross_entropy(scores_BB, torch.arange(len(scores_BB)))
