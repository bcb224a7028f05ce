"""How well another encoder's vectors will be found, before their modality is learned: predicted from a sample of pairs.

The head of a modality that is aligned to another one is a regression onto the other's embeddings (workers/nullspace/joining.py).
Its errors on pairs that it has not seen come from folds of the sample. Held-out rows of datasets that the model has learned
say what such errors cost: the partners of their queries get them, and recall is measured again.

Shapes: N pairs, M held-out rows, F width of what the aligned head reads, E width of the embeddings, K directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from cmcl.contract.modality import ModalityPair
from workers.model.heads import ModalityHeads, PairedRows
from workers.model.loss import unit
from workers.nullspace.centred import centred
from workers.nullspace.closed_form import typical_variance
from workers.nullspace.joining import aligned_choice
from workers.nullspace.moments import pair_moments
from workers.train.evaluation import HeldOut, recall
from workers.train.learn import prepare_rows

# A sample of the pairs, by the time of a solution for each fold (N³).
_MOST_PAIRS = 2048
# With fewer, folds say more of their own rows than of the encoder.
_FEWEST_PAIRS = 50
# Odd, so that half as many pairs are a number of folds, too.
_FOLDS = 9
_DRAWS = 4
_HALVES = 12


@dataclass(frozen=True)
class Forecast:
    """R@10 on another encoder's vectors, relative to that on vectors of the model's own encoder.

    `low`, `high`: two standard errors around it. `doubled`: with twice as many pairs, by the learning curve.
    """

    pairs: int
    share: float
    low: float
    high: float
    doubled: float

    @property
    def advice(self) -> str:
        return (
            f"Predicted from {self.pairs:,} pairs: R@10 is {self.share:.3f} ({self.low:.3f} to {self.high:.3f}) times that "
            f"of encoding everything again; with twice as many pairs {self.doubled:.3f}."
        )


def forecast(
    heads: ModalityHeads,
    pair: ModalityPair,
    rows: PairedRows,
    measured: Sequence[tuple[ModalityPair, HeldOut]],
) -> Forecast | None:
    """Predict recall on vectors of `pair.first`, which is to be aligned to `pair.second`.

    `heads`: of the version that would learn the pairs, with the conditioning of the new modality. `rows`: the pairs as raw
    features. `measured`: held-out rows of datasets that have `pair.second`. None without these, or with too few pairs.
    """
    if len(rows) > _MOST_PAIRS:
        rows = rows.at(torch.arange(0, len(rows), len(rows) / _MOST_PAIRS).long()[:_MOST_PAIRS])
    if len(rows) < _FEWEST_PAIRS or not measured:
        return None
    read = prepare_rows(heads, pair, rows)
    one, other = (
        centred(pair_moments(half.first_NI, half.second_NJ), 1.0) for half in read.halves()
    )
    ridge = aligned_choice((one, other)).ridges[0]
    own_NF, wanted_NE = read.first_NI[:, :-1], heads.outputs(pair.second, rows.second_NJ)
    # Equal items are in the same fold.
    fold_N = torch.unique(rows.second_keys_N, return_inverse=True)[1] % _FOLDS
    errors = {
        folds: _Errors.measured(wanted_NE, _predicted(own_NF, wanted_NE, fold_N, ridge, folds))
        for folds in (_FOLDS - 1, _FOLDS // 2)
    }
    embedded = [
        _Embedded.of(heads, each, held, each.modalities.index(pair.second))
        for each, held in measured
    ]
    full, half = (
        fmean(_share(embedded, each, seed) for seed in range(_DRAWS)) for each in errors.values()
    )
    parts = [
        _share([each.half(seed) for each in embedded], errors[_FOLDS - 1], seed)
        for seed in range(_HALVES)
    ]
    # Sampling half of the rows without replacement varies as much as all rows do.
    error = 2 * stdev(parts)
    # Losses fall as a power of the number of pairs.
    lost, lost_before = max(1 - full, 0.0), max(1 - half, 0.0)
    doubled = 1 - lost**2 / lost_before if lost < lost_before else full
    return Forecast(len(rows), full, full - error, full + error, max(doubled, full))


def _predicted(
    own_NF: Tensor, wanted_NE: Tensor, fold_N: Tensor, ridge: float, folds: int
) -> Tensor:
    """Each row's embedding (N × E), by the regression from rows of the next `folds` folds."""
    found_NE = torch.empty_like(wanted_NE)
    for fold in range(_FOLDS):
        after_N = (fold_N - fold) % _FOLDS
        is_known_N, is_asked_N = (after_N >= 1) & (after_N <= folds), after_N == 0
        known_BF = own_NF[is_known_N].double()
        mean_F, mean_E = known_BF.mean(0), wanted_NE[is_known_N].double().mean(0)
        known_BF = known_BF - mean_F
        # W = Zᵀ (X Xᵀ + e I)⁻¹ X, the same as Zᵀ X (Xᵀ X + e I)⁻¹; X Xᵀ has the eigenvalues of Xᵀ X.
        product_BB = known_BF @ known_BF.mT
        product_BB.diagonal().add_(ridge * typical_variance(product_BB))
        solved_BE = torch.cholesky_solve(
            wanted_NE[is_known_N] - mean_E, torch.linalg.cholesky(product_BB)
        )
        asked_AF = own_NF[is_asked_N] - mean_F
        found_NE[is_asked_N] = (asked_AF @ known_BF.mT @ solved_BE + mean_E).to(found_NE)
    return found_NE


@dataclass(frozen=True)
class _Errors:
    """ẑ = m + (z − m) A + r: what a regression makes of embeddings. `map_EE`: A. `rest_NE`: samples of r."""

    mean_E: Tensor
    map_EE: Tensor
    rest_NE: Tensor

    @classmethod
    def measured(cls, wanted_NE: Tensor, found_NE: Tensor) -> "_Errors":
        mean_E = wanted_NE.mean(0)
        wanted_NE, found_NE = wanted_NE - mean_E, found_NE - mean_E
        rows, width = wanted_NE.shape
        left_NK, values_K, right_KE = torch.linalg.svd(wanted_NE, full_matrices=False)
        kept = min(rows // 4, width, int((values_K > 1e-3 * values_K[0]).sum()))
        map_EE = right_KE[:kept].mT @ ((left_NK[:, :kept].mT @ found_NE) / values_K[:kept, None])
        rest_NE = found_NE - wanted_NE @ map_EE
        # What is left of the rows that A was fitted to is too little by its degrees of freedom.
        return cls(mean_E, map_EE, rest_NE * (rows / (rows - kept)) ** 0.5)

    def applied(self, outputs_ME: Tensor, keys_M: Tensor, random: torch.Generator) -> Tensor:
        """Equal items (of equal keys) have equal vectors, so they get the same errors."""
        _, item_M = torch.unique(keys_M, return_inverse=True)
        drawn_M = torch.randint(len(self.rest_NE), (len(keys_M),), generator=random)[item_M]
        return unit((outputs_ME - self.mean_E) @ self.map_EE + self.mean_E + self.rest_NE[drawn_M])


@dataclass(frozen=True)
class _Embedded:
    """Held-out rows: unit embeddings of the queries, and outputs of the modality that the vectors stand for."""

    held: HeldOut
    queries_ME: Tensor
    outputs_ME: Tensor
    keys_M: Tensor

    @classmethod
    def of(cls, heads: ModalityHeads, pair: ModalityPair, held: HeldOut, place: int) -> "_Embedded":
        names, sides = pair.modalities, (held.rows.first_NI, held.rows.second_NJ)
        return cls(
            held,
            heads.embed(names[1 - place], sides[1 - place]),
            heads.outputs(names[place], sides[place]),
            (held.rows.first_keys_N, held.rows.second_keys_N)[place],
        )

    def half(self, seed: int) -> "_Embedded":
        rows = len(self.held)
        random = torch.Generator().manual_seed(seed)
        chosen_M = torch.randperm(rows, generator=random)[: max(1, rows // 2)]
        held = HeldOut(self.held.rows.at(chosen_M), None)
        return _Embedded(
            held, self.queries_ME[chosen_M], self.outputs_ME[chosen_M], self.keys_M[chosen_M]
        )

    def hits(self, vectors_ME: Tensor) -> float:
        return len(self.held) * recall(self.queries_ME, vectors_ME, self.held).at_10


def _share(embedded: Sequence[_Embedded], errors: _Errors, seed: int) -> float:
    random = torch.Generator().manual_seed(seed)
    found = sum(
        each.hits(errors.applied(each.outputs_ME, each.keys_M, random)) for each in embedded
    )
    return found / max(sum(each.hits(unit(each.outputs_ME)) for each in embedded), 1e-9)
