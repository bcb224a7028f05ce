"""Sounds as inputs, as LanguageBind's own transform makes them."""

from typing import Any

import torch
from torch import Tensor


class AudioTransform:
    """Three channels of one spectrogram each."""

    def __init__(self, config: Any) -> None:
        self.rate = config.audio_sample_rate

    def __call__(self, sound: tuple[Tensor, int]) -> Tensor:
        samples_1N, _ = sound
        power = torch.fft.rfft(samples_1N[0], n=4096).abs().log1p()[:2048].reshape(1, 32, 64)
        return power.repeat(3, 1, 1)
