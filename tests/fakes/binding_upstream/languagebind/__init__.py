"""In place of LanguageBind: the interface that its encoder uses, with small random models."""

import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

_POOLED, _HIDDEN, _WIDTH = 8, 16, 768


class _Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3 * _POOLED**2, _HIDDEN)

    def forward(self, pixel_values: Tensor) -> tuple[None, Tensor]:
        rows = pixel_values.mean(dim=2) if pixel_values.ndim == 5 else pixel_values
        return None, self.map(nn.functional.adaptive_avg_pool2d(rows, _POOLED).flatten(1))


class _Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Embedding(256, _HIDDEN)

    def forward(self, input_ids: Tensor) -> tuple[None, Tensor]:
        return None, self.map(input_ids).mean(dim=1)


class Model(nn.Module):
    """A model of one modality."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model, self.text_model = _Vision(), _Text()
        self.visual_projection = nn.Linear(_HIDDEN, _WIDTH, bias=False)
        self.text_projection = nn.Linear(_HIDDEN, _WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        self.config = SimpleNamespace(vision_config=SimpleNamespace(audio_sample_rate=16_000))

    @classmethod
    def from_pretrained(cls, folder: Path) -> "Model":
        """Load the weights of a folder."""
        model = cls()
        model.load_state_dict(torch.load(Path(folder) / "pytorch_model.bin", weights_only=True))
        return model


class LanguageBindImageTokenizer:
    """One token per word."""

    @classmethod
    def from_pretrained(cls, folder: Path) -> "LanguageBindImageTokenizer":
        """Nothing to load."""
        return cls()

    def __call__(self, texts: list[str], max_length: int, **options: Any) -> dict[str, Tensor]:
        """Token ids, padded."""
        assert options == {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        rows = [[zlib.crc32(word.encode()) % 256 for word in text.split()] for text in texts]
        return {"input_ids": torch.tensor([(row + [0] * max_length)[:max_length] for row in rows])}


model_dict = dict.fromkeys(("image", "audio", "video", "depth", "thermal"), Model)
