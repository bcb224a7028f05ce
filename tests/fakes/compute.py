"""`Compute` without threads: work runs at once; a test sets the number of waiting rows."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from workers.model.heads import unit_rows
from workers.serve.compute import NO_TICKET, Ticket
from workers.serve.versions.loading import Float32Array, ServedVersion

P = ParamSpec("P")
T = TypeVar("T")


class ImmediateCompute:
    """Satisfies `Compute`."""

    def __init__(self) -> None:
        self.waiting_rows = 0
        self.background_seconds = 0.0
        self.runs: list[str] = []

    async def embed(
        self,
        version: ServedVersion,
        modality: str,
        rows_BF: Float32Array,
        *,
        normalize: bool = True,
        ticket: Ticket = NO_TICKET,
    ) -> Float32Array:
        outputs_BE = version.head(modality).outputs(torch.from_numpy(rows_BF))
        return (unit_rows(outputs_BE) if normalize else outputs_BE).numpy()

    async def run(
        self, owner: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        self.runs.append(function.__name__)
        return function(*args, **kwargs)

    async def responds(self, seconds: float) -> bool:
        return True
