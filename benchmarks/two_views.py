"""Methods for two encoders of one dataset, tuned on its training rows by cross-validation.

Shapes: N training rows, R and Q directions in which their two sides vary, K canonical directions, E width of the
embeddings, B rows to embed.

All begin with rows at unit length about their training mean, in the coordinates of a singular value decomposition, in
which every head that training rows can show is one matrix. Variances of ridges are relative to a side's typical one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from workers.model.heads import PairedRows, unit_rows
from workers.model.loss import symmetric_info_nce, unit

RIDGES = tuple(4.0**step for step in range(-5, 1))
COUNTS = (8, 16, 32, 64, 128, 256)
# Of InfoNCE on rows.
_RATE, TEMPERATURES, UPDATES = 3e-3, (0.05, 0.1), (40, 80, 160)
_WIDTH, _BATCH = 256, 128
# With more rows than a few, one held-out fifth is enough to compare settings.
_FIFTHS, _FEW = 5, 200
# Rounding, relative to the largest singular value.
_NO_VARIANCE = 1e-5

Embedding = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From raw features of both sides to unit embeddings."""
Setting = tuple[float | str, ...]
Fitted = Iterator[tuple[Setting, Embedding]]


@dataclass(frozen=True)
class _Side:
    """Training rows of one side: their mean, and U diag(s) Vᵀ of what they differ by from it."""

    mean_F: Tensor
    left_NR: Tensor
    values_R: Tensor
    right_RF: Tensor

    @classmethod
    def from_rows(cls, raw_NF: Tensor) -> "_Side":
        rows_NF = unit_rows(raw_NF)
        mean_F = rows_NF.mean(0)
        left_NR, values_R, right_RF = torch.linalg.svd(rows_NF - mean_F, full_matrices=False)
        kept = values_R > _NO_VARIANCE * values_R[0]
        return cls(mean_F, left_NR[:, kept], values_R[kept], right_RF[kept])

    @property
    def variances_R(self) -> Tensor:
        return self.values_R.square() / len(self.left_NR)

    @property
    def typical(self) -> float:
        """tr C² / tr C."""
        return float(self.variances_R.square().sum() / self.variances_R.sum())

    @property
    def rows_NR(self) -> Tensor:
        return self.left_NR * self.values_R

    def __call__(self, raw_BF: Tensor) -> Tensor:
        """Rows in these coordinates (B × R)."""
        return (unit_rows(raw_BF) - self.mean_F) @ self.right_RF.mT


def cca(first: _Side, second: _Side, _: PairedRows) -> Fitted:
    """Canonical correlation analysis (Hotelling 1936), by the cosine of the K leading directions."""
    yield from _canonical(first, second, 0.0)


def csa(first: _Side, second: _Side, _: PairedRows) -> Fitted:
    """Canonical similarity analysis (arXiv 2410.07610): directions count by their correlation."""
    yield from _canonical(first, second, 0.5)


def _canonical(first: _Side, second: _Side, power: float) -> Fitted:
    for ridge in RIDGES:
        whitening_R, whitening_Q = (
            (side.variances_R + ridge * side.typical).rsqrt() for side in (first, second)
        )
        cross_RQ = first.rows_NR.mT @ second.rows_NR / len(first.left_NR)
        left_RK, values_K, right_KQ = torch.linalg.svd(
            whitening_R[:, None] * cross_RQ * whitening_Q, full_matrices=False
        )
        weights_K = values_K**power
        heads = (
            left_RK.mT * whitening_R * weights_K[:, None],
            right_KQ * whitening_Q * weights_K[:, None],
        )
        for count in COUNTS:
            if count == COUNTS[0] or count < 2 * len(values_K):
                yield (ridge, count), _linear(first, second, heads[0][:count], heads[1][:count])


def _linear(first: _Side, second: _Side, first_ER: Tensor, second_EQ: Tensor) -> Embedding:
    return lambda one, other: (unit(first(one) @ first_ER.mT), unit(second(other) @ second_EQ.mT))


def ridge(first: _Side, second: _Side, _: PairedRows) -> Fitted:
    """Ridge regression onto the other side, by the cosine there: one way, or the mean of both."""
    cross_RQ = first.left_NR.mT @ second.left_NR
    for strength in RIDGES:
        maps = [
            (values_R / (values_R.square() + strength * len(first.left_NR) * side.typical))[:, None]
            * across_RQ
            * other.values_R
            for side, other, across_RQ in ((first, second, cross_RQ), (second, first, cross_RQ.mT))
            for values_R in [side.values_R]
        ]
        for way in ("first", "second", "both"):
            yield (strength, way), _mapped(first, second, maps, way)


def _mapped(first: _Side, second: _Side, maps: Sequence[Tensor], way: str) -> Embedding:
    def embed(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        one, other = first(one), second(other)
        spaces = {
            "first": (unit(one @ maps[0]), unit(other)),
            "second": (unit(one), unit(other @ maps[1])),
        }
        if way != "both":
            return spaces[way]
        # An inner product of both is the sum of the two.
        left, right = (torch.cat(each, dim=1) for each in zip(*spaces.values(), strict=True))
        return unit(left), unit(right)

    return embed


def info_nce(first: _Side, second: _Side, rows: PairedRows) -> Fitted:
    """Linear heads trained on the rows by AdamW with the product's loss, from random ones."""
    for temperature in TEMPERATURES:
        for updates, (first_ER, second_EQ) in _trained((first, second), rows, temperature):
            yield (temperature, updates), _linear(first, second, first_ER, second_EQ)


def _trained(
    sides: tuple[_Side, _Side], rows: PairedRows, temperature: float
) -> Iterator[tuple[int, list[Tensor]]]:
    """Heads after each of `UPDATES`."""
    random = torch.Generator().manual_seed(0)
    # Inputs that vary about equally, but for those that hardly vary.
    scales = [(side.variances_R + 0.1 * side.typical).rsqrt() for side in sides]
    inputs = [side.rows_NR * scale_R for side, scale_R in zip(sides, scales, strict=True)]
    heads = [torch.randn(_WIDTH, len(scale_R), generator=random) for scale_R in scales]
    heads = [(head / head.shape[1] ** 0.5).requires_grad_() for head in heads]
    optimizer = torch.optim.AdamW(heads, lr=_RATE, weight_decay=1e-2, fused=True)
    order_N, size = torch.empty(0, dtype=torch.int64), min(_BATCH, len(rows))
    for update in range(1, UPDATES[-1] + 1):
        if len(order_N) < size:
            order_N = torch.randperm(len(rows), generator=random)
        index_B, order_N = order_N[:size], order_N[size:]
        batch = rows.at(index_B)
        one_BE, other_BE = (
            unit(side_NR[index_B] @ head.mT) for side_NR, head in zip(inputs, heads, strict=True)
        )
        optimizer.zero_grad()
        loss = symmetric_info_nce((one_BE, other_BE), batch.positives_in(batch), temperature)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if update in UPDATES:
            found = [head.detach() * scale_R for head, scale_R in zip(heads, scales, strict=True)]
            yield update, found


METHODS: Mapping[str, Callable[..., Fitted]] = {
    "cca": cca,
    "csa": csa,
    "ridge": ridge,
    "info_nce": info_nce,
}


def tuned(method: str, rows: PairedRows) -> Embedding:
    """The method with the setting that has the highest mean reciprocal rank on held-out fifths of these rows."""
    order_N = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    scores: dict[Setting, list[float]] = {}
    for fold in range(_FIFTHS if len(rows) <= _FEW else 1):
        is_held_N = torch.zeros(len(rows), dtype=torch.bool)
        is_held_N[order_N[fold::_FIFTHS]] = True
        held = rows.at(is_held_N)
        for setting, embed in _fitted(method, rows.at(~is_held_N)):
            scores.setdefault(setting, []).append(mean_reciprocal_rank(embed, held))
    best = max(scores, key=lambda setting: fmean(scores[setting]))
    return next(embed for setting, embed in _fitted(method, rows) if setting == best)


def _fitted(method: str, rows: PairedRows) -> Fitted:
    return METHODS[method](_Side.from_rows(rows.first_NI), _Side.from_rows(rows.second_NJ), rows)


def mean_reciprocal_rank(embed: Embedding, held: PairedRows) -> float:
    """Of the best row with the query's item, in both directions."""
    one_NE, other_NE = embed(held.first_NI, held.second_NJ)
    is_hit_NN, scores_NN = held.positives_in(held), one_NE @ other_NE.mT
    means = []
    for way_NN in (scores_NN, scores_NN.mT):
        best_N1 = way_NN.masked_fill(~is_hit_NN, -torch.inf).amax(dim=1, keepdim=True)
        ranks_N = 1 + ((way_NN >= best_N1) & ~is_hit_NN).sum(dim=1)
        means.append(float((1 / ranks_N).mean()))
    return fmean(means)
