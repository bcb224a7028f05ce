"""Texts and sounds as inputs, as `imagebind.data` makes them."""

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor


def load_and_transform_text(text: Sequence[str], device: str) -> Tensor:
    """Token ids (B × 77)."""
    rows = []
    for each in text:
        ids = [sha256(word.encode()).digest()[0] for word in each.split()][:77]
        rows.append(ids + [0] * (77 - len(ids)))
    return torch.tensor(rows, device=device)


def waveform2melspec(
    waveform: Tensor, sample_rate: int, num_mel_bins: int, target_length: int
) -> Tensor:
    """A spectrogram (1 × bins × length)."""
    assert sample_rate == 16_000
    hops = waveform.shape[1] // 160
    parts = waveform[0, : hops * 160].reshape(hops, 160)
    power = torch.fft.rfft(parts, n=2 * num_mel_bins - 1).abs().log1p().mT
    padded = torch.zeros(1, num_mel_bins, target_length)
    padded[0, :, : min(hops, target_length)] = power[:, :target_length]
    return padded
