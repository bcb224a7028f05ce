"""The product's side of the step benchmark: a context with protected directions, and its update.

Shapes: B rows of a batch, N of a dataset, E width of the embeddings, I of what a head reads; E = I.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.method import Batch, Recipe, TrainingContext, UpdateRule
from workers.methods.preserve import Preserve
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.loss import unit
from workers.model.memory import Memory
from workers.model.pair import PairInEigenCoordinates, rotate
from workers.nullspace.mask import UpdateSpace, product_mask
from workers.nullspace.moments import SecondMoment, pair_moments
from workers.nullspace.subspace import EigenBasis, common_eigenbasis, eigenbasis
from workers.train.distributed import SINGLE_PROCESS
from workers.train.loop import GlobalLoss, optimizer_for
from workers.train.rows import LocalBatch

KEPT_ENERGY: float = ModelSpec.model_fields["kept_energy"].default
PAIR = ModalityPair(first="image", second="text")
# Each side has learned with a different partner before, so that both heads have protected
# directions.
_BEFORE = ModalityPair(first="audio", second="image"), ModalityPair(first="depth", second="text")


@dataclass(frozen=True)
class Setting:
    """A context with protected directions on both sides, with its rows and the spaces of its
    heads."""

    context: TrainingContext
    rows: PairedRows
    spaces: tuple[UpdateSpace, UpdateSpace]

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights of the two heads (E × I)."""
        first, second = (self.context.heads.weights[name] for name in PAIR.modalities)
        return first, second

    @property
    def moments(self) -> list[tuple[SecondMoment, SecondMoment]]:
        """Moments (partners' embeddings, inputs) of everything that each head has learned."""
        memory, found = self.context.memory, []
        for name in PAIR.modalities:
            outputs, inputs = memory.partners_of(name, self.context.heads), memory.inputs_of(name)
            assert outputs is not None
            assert inputs is not None
            found.append((outputs, inputs))
        return found


def random_setting(width: int, rows: int, seed: int = 0) -> Setting:
    """Return a setting in which both modalities have learned before, with other partners."""
    generator = torch.Generator().manual_seed(seed)
    memory = Memory()
    for pair in _BEFORE:
        sides = (random_features(3 * width, width, generator) for _ in pair.modalities)
        memory = memory.with_dataset(pair, pair_moments(*sides))
    names = {name for pair in _BEFORE for name in pair.modalities}
    heads = ModalityHeads({name: torch.eye(width) for name in sorted(names)})
    context = TrainingContext(heads, memory, {}, PAIR, TrainingSpec(), seed)
    spaces = Preserve(KEPT_ENERGY).update_spaces(context)
    first, second = (random_features(rows, width, generator) for _ in PAIR.modalities)
    paired = PairedRows(first, second, torch.arange(rows), torch.arange(rows))
    return Setting(context, paired, (spaces[PAIR.first], spaces[PAIR.second]))


def random_features(rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return unit rows (N × I) whose k-th random direction has the variance 1 / k."""
    turn_II = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    scale_I = torch.arange(1, width + 1).rsqrt()
    return unit(torch.randn(rows, width, generator=generator) * scale_I @ turn_II.mT)


class MaskedPair:
    """The product's update, as in workers/train/loop.py."""

    def __init__(
        self,
        weights: tuple[Tensor, Tensor],
        rows: PairedRows,
        spec: TrainingSpec,
        spaces: tuple[UpdateSpace, UpdateSpace],
        weight_decay: float = Recipe.weight_decay,
    ) -> None:
        first, second = spaces
        self.pair = PairInEigenCoordinates((weights[0], first), (weights[1], second))
        self._rotated = replace(
            rows, first_NI=rotate(rows.first_NI, first), second_NJ=rotate(rows.second_NJ, second)
        )
        self._objective = GlobalLoss(self.pair, spec, SINGLE_PROCESS)
        self._optimizer = optimizer_for(self.pair, spec.learning_rate, weight_decay)
        self._rule = UpdateRule()

    def update(self, index_B: Tensor) -> None:
        """Do one update on these rows: forward, backward, optimizer."""
        batch = LocalBatch(self._rotated.at(index_B), (len(index_B),))
        self._optimizer.zero_grad(set_to_none=True)
        self._rule.backward(Batch(partial(self._objective, batch)))
        self._optimizer.step()
        self._rule.after_update(self._optimizer.param_groups[0]["lr"])


def sealed_bases(setting: Setting) -> list[EigenBasis]:
    """Return the input bases of both heads, as earlier jobs sealed them (methods/preserve.py)."""
    return [eigenbasis(inputs) for _, inputs in setting.moments]


def start_protected(
    outputs: Sequence[SecondMoment], inputs: Sequence[EigenBasis], rows: tuple[Tensor, Tensor]
) -> None:
    """Do the work before the first update: basis of the outputs, masks, rows."""
    common = common_eigenbasis(outputs)
    for basis, rows_NI in zip(inputs, rows, strict=True):
        free_EI = product_mask(common, basis, KEPT_ENERGY)
        rotate(rows_NI, UpdateSpace(common, basis, free_EI))
