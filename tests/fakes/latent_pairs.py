"""Paired features of modalities that see the same latent variables: each modality can be found by any other."""

from pathlib import Path

import numpy as np

from cmcl.contract.dataset import Shard
from cmcl.contract.modality import ModalityPair
from tests.fakes.feature_shards import write_pair_shard

WIDTHS = {"image": 14, "text": 10, "depth": 12, "audio": 8}
LATENT = 6
_NOISE = 0.2


def latent_rows(rows: int, seed: int) -> np.ndarray:
    """Latent variables (rows × LATENT)."""
    return np.random.default_rng(seed).normal(size=(rows, LATENT))


def features_of(modality: str, latent_NL: np.ndarray, seed: int) -> np.ndarray:
    """Features of the modality's encoder: a fixed linear map of them and noise."""
    number = list(WIDTHS).index(modality)
    map_LI = np.random.default_rng(1000 + number).normal(size=(LATENT, WIDTHS[modality]))
    noise_NI = np.random.default_rng((seed, number)).normal(size=(len(latent_NL), WIDTHS[modality]))
    return (latent_NL @ map_LI + _NOISE * noise_NI).astype(np.float32)


def write_latent_pairs(path: Path, pair: ModalityPair, rows: int, seed: int) -> Shard:
    """A shard of rows that no other seed has."""
    latent_NL = latent_rows(rows, seed)
    first, second = (features_of(name, latent_NL, seed) for name in pair.modalities)
    return write_pair_shard(path, (first, second))
