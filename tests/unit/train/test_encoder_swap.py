"""An encoder is swapped by learning pairs of old and new features; what was stored stays valid."""

import numpy as np
import pytest
import torch

from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from tests.fakes.latent_pairs import WIDTHS, features_of, latent_rows
from workers.model.heads import PairedRows, content_keys
from workers.train.certify import PastDataset, weights_of
from workers.train.evaluation import HeldOut, recall
from workers.train.learn import Task, initial_state, learn
from workers.train.rows import RowsInMemory

IMAGE_TEXT = ModalityPair(first="image", second="text")
SWAP = ModalityPair(first="image", second="image_2")


def new_features(old_NI: np.ndarray) -> np.ndarray:
    """The features of the new encoder: those of the old one, rotated."""
    turn_II = np.linalg.qr(np.random.default_rng(5).normal(size=(old_NI.shape[1],) * 2))[0]
    return (old_NI @ turn_II).astype(np.float32)


def paired(first_NI: np.ndarray, second_NJ: np.ndarray) -> PairedRows:
    return PairedRows(
        torch.from_numpy(first_NI),
        torch.from_numpy(second_NJ),
        torch.from_numpy(content_keys(first_NI)),
        torch.from_numpy(content_keys(second_NJ)),
    )


def pairs(rows: int, seed: int) -> PairedRows:
    """Images with texts."""
    latent_NL = latent_rows(rows, seed)
    return paired(features_of("image", latent_NL, seed), features_of("text", latent_NL, seed))


@pytest.mark.parametrize(("policy", "lost"), [("improve", 0.03), ("preserve", 0.05)])
def test_a_rotated_encoder_finds_what_the_old_one_found(policy: str, lost: float) -> None:
    spec = ModelSpec.model_validate(
        {
            "width": 6,
            "modalities": {**WIDTHS, "image_2": WIDTHS["image"]},
            "training": {"batch_size": 32, "epochs": 30, "learning_rate": 0.01},
            "policy": policy,
            "lift": 0,
        }
    )
    first = learn(spec, initial_state(spec), Task(IMAGE_TEXT, RowsInMemory(pairs(600, 1)), seed=1))
    before = first.model_state
    then = weights_of(IMAGE_TEXT, before.heads)
    past = PastDataset.in_memory("one", IMAGE_TEXT, first.moments, then)
    sample = pairs(200, 3).first_NI.numpy()
    rows = RowsInMemory(paired(sample, new_features(sample)))
    after = learn(spec, before, Task(SWAP, rows, seed=2, past=(past,))).model_state

    held = pairs(200, 2)
    stored_images = before.heads.embed("image", held.first_NI)
    stored_texts = before.heads.embed("text", held.second_NJ)
    new = torch.from_numpy(new_features(held.first_NI.numpy()))
    query = after.heads.embed("image_2", new)
    measure = HeldOut(held, None)
    old = recall(stored_images, stored_texts, measure).at_1
    assert old > 0.5
    # The new encoder's queries on vectors of texts that were stored before the swap.
    assert recall(query, stored_texts, measure).at_1 > old - lost
    # Text queries after the swap, on vectors of images that the old encoder stored.
    texts = after.heads.embed("text", held.second_NJ)
    assert recall(stored_images, texts, measure).at_1 > old - lost
