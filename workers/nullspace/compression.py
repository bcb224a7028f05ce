"""How far scores move where vectors are stored in less space, from second moments alone.

Shapes: N rows, E width of the embeddings, D of shorter ones.

A score is the cosine u · v of two unit embeddings. Stored as û and v̂ it is û · v̂, and over *all* row combinations

    mean of (û · v̂ − u · v)² = ⟨E û ûᵀ, E v̂ v̂ᵀ⟩ − 2 ⟨E û uᵀ, E v̂ vᵀ⟩ + ⟨E u uᵀ, E v vᵀ⟩        (17)

because the two rows of a combination are drawn independently. Bits are no such product: of bits that differ, h of E,
the score is estimated as cos(π h / E). Signs of a rotated pair of orthogonal vectors agree or differ with variance 1
each, of which what their products explain, (2 / π)², is missing, since these sum to zero. So the estimate has the
variance (π / 2)² (1 − (2 / π)²) / E = (π² / 4 − 1) / E, and less by 1 − (u · v)² where the vectors are not orthogonal.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_LENGTHS = (32, 64, 128, 256, 512)


def score_errors(first_NE: Tensor, second_NE: Tensor) -> dict[str, float]:
    """Return the root mean square error of the scores of unit embeddings, by how both sides are stored.

    `float16`; `int8`, with a scale for each vector; `bit`; and the first 32, 64, ... numbers, at unit length.
    """
    assert first_NE.shape == second_NE.shape
    sides = (first_NE.double(), second_NE.double())
    width = first_NE.shape[1]
    forms: dict[str, Callable[[Tensor], Tensor]] = {"float16": _float16, "int8": _int8}
    size = _mean_product(sides, sides)

    def error(first_ND: Tensor, second_ND: Tensor) -> float:
        """The root of (17). Rounding can leave a negative sum where nothing differs."""
        stored = first_ND, second_ND
        square = _mean_product(stored, stored) - 2 * _mean_product(stored, sides) + size
        return math.sqrt(max(square, 0.0))

    found = {name: error(*map(form, sides)) for name, form in forms.items()}
    # Rounding can leave more than 1 where all rows have one direction.
    found["bit"] = math.sqrt((math.pi**2 / 4 - 1) * max(1 - size, 0.0) / width)
    for length in _LENGTHS:
        if length < width:
            found[str(length)] = error(
                *(torch.nn.functional.normalize(each[:, :length]) for each in sides)
            )
    return found


def _mean_product(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    """The mean of (a · b)(c · d) over all combinations of a row of (a, c) and one of (b, d): ⟨E a cᵀ, E b dᵀ⟩."""
    moments = [a_ND.mT @ c_NE / len(a_ND) for a_ND, c_NE in zip(one, other, strict=True)]
    return float((moments[0] * moments[1]).sum())


def _float16(rows_NE: Tensor) -> Tensor:
    return rows_NE.half().double()


def _int8(rows_NE: Tensor) -> Tensor:
    step_N1 = rows_NE.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(rows_NE / step_N1) * step_N1
