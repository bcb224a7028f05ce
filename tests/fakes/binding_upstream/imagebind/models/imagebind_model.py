"""A model with the towers, inputs and outputs of `ImageBindModel`, and few parameters."""

from typing import Any

import torch
from torch import Tensor, nn

_POOLED = 8


class ImageBindModel(nn.Module):
    """Towers of one linear map each. Outputs have the lengths of the real ones."""

    def __init__(self, out_embed_dim: int, **architecture: Any) -> None:
        super().__init__()
        assert architecture["vision_num_blocks"] == 32
        colours = {"vision": 3, "audio": 1, "depth": 1, "thermal": 1}
        self.towers = nn.ModuleDict(
            {name: nn.Linear(count * _POOLED**2, out_embed_dim) for name, count in colours.items()}
        )
        self.towers["text"] = nn.Embedding(256, out_embed_dim)
        self.lengths = {"vision": 1.0, "text": 100.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0}

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Like the real one, it takes a second dimension of five or more for clips."""
        found = {}
        for name, values in inputs.items():
            clips = values.ndim >= 5
            rows = values.flatten(0, 1) if clips else values
            outputs = self.lengths[name] * nn.functional.normalize(self._tower(name, rows), dim=-1)
            found[name] = outputs.unflatten(0, values.shape[:2]).mean(1) if clips else outputs
        return found

    def _tower(self, name: str, rows: Tensor) -> Tensor:
        if name == "text":
            embedded: Tensor = self.towers["text"](rows).mean(dim=1)
            return embedded
        if rows.ndim == 5:
            assert rows.shape[1] == 3, "channels come before frames"
            rows = rows.mean(dim=2)
        pooled = nn.functional.adaptive_avg_pool2d(rows, _POOLED)
        projected: Tensor = self.towers[name](pooled.flatten(1))
        return projected


def random_state(seed: int) -> dict[str, Tensor]:
    """Random weights of the model."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return dict(ImageBindModel(1024, vision_num_blocks=32).state_dict())
