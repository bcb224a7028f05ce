"""Averaging the last iterates of training.

The mean of the weights over the tail of training generalises better than the last iterate (Polyak
and Juditsky 1992; arXiv 1803.05407), and costs one addition per update. It is linear, so entries
that are blocked in every iterate are blocked in the mean.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


class TailAverage:
    """Mean of the parameters over the last `share` of all updates; 0 means the last iterate."""

    def __init__(self, parameters: "tuple[nn.Parameter, nn.Parameter]", share: float) -> None:
        self._parameters, self._share, self._count = parameters, share, 0
        self._means = [torch.zeros_like(parameter) for parameter in parameters] if share else []

    @torch.no_grad()
    def after_update(self, progress: float) -> None:
        """Told after each update; `progress` is the share of all updates that are done."""
        if not self._share or progress <= 1 - self._share:
            return
        self._count += 1
        for mean, parameter in zip(self._means, self._parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 / self._count)

    def values(self) -> tuple[Tensor, Tensor]:
        """The mean; the parameters themselves where nothing was averaged."""
        first, second = self._means if self._count else self._detached()
        return first, second

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs."""
        means = {str(side): mean for side, mean in enumerate(self._means)}
        return {"count": torch.tensor(self._count), **means}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._count = int(state["count"])
        for side, mean in enumerate(self._means):
            mean.copy_(state[str(side)])

    def _detached(self) -> Iterable[Tensor]:
        return [parameter.detach() for parameter in self._parameters]
