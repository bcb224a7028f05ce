"""Heads start as a function of the spec; features reach them at unit length with a constant 1."""

import numpy as np
import torch

from cmcl.contract.model import ModelSpec
from workers.model.heads import initial_heads, prepare
from workers.model.rows import content_keys
from workers.nullspace.conditioning import Conditioning

SPEC = ModelSpec(width=16, modalities={"image": 16, "text": 9, "audio": 30})


def test_prepared_features_have_unit_length_and_a_constant() -> None:
    prepared = prepare(torch.tensor([[3.0, 4.0], [300.0, 400.0]]))
    torch.testing.assert_close(prepared, torch.tensor([[0.6, 0.8, 1.0], [0.6, 0.8, 1.0]]))


def test_content_keys_agree_exactly_where_rows_agree() -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2]], dtype=np.float32)
    first, second, third = content_keys(rows).tolist()
    assert first == third
    assert first != second


def test_head_of_equal_width_starts_as_identity() -> None:
    weight = initial_heads(SPEC).weights["image"]
    torch.testing.assert_close(weight, torch.eye(16, 17))


def test_head_of_other_width_starts_orthonormal() -> None:
    text, audio = (initial_heads(SPEC).weights[name] for name in ("text", "audio"))
    torch.testing.assert_close(text[:, :9].mT @ text[:, :9], torch.eye(9))
    torch.testing.assert_close(audio @ audio.mT, torch.eye(16))


def test_another_modality_does_not_change_the_start_of_the_others() -> None:
    fewer = ModelSpec(width=16, modalities={"audio": 30, "text": 9})
    for name in ("text", "audio"):
        torch.testing.assert_close(
            initial_heads(SPEC).weights[name], initial_heads(fewer).weights[name]
        )


def test_conditioned_features_are_centred_mapped_and_of_unit_length() -> None:
    conditioning = Conditioning(torch.tensor([0.6, 0.0]), torch.diag(torch.tensor([5.0, 2.0])))
    prepared = prepare(torch.tensor([[3.0, 4.0]]), conditioning)
    torch.testing.assert_close(prepared, torch.tensor([[0.0, 1.0, 1.0]]))


def test_conditioning_of_the_first_dataset_is_never_replaced() -> None:
    first, later = (Conditioning(torch.full((9,), x), torch.eye(9)) for x in (1.0, 2.0))
    heads = initial_heads(SPEC).conditioned({"text": first}).conditioned({"text": later})
    assert heads.conditioning == {"text": first}


def test_embeddings_are_unit_vectors() -> None:
    embeddings = initial_heads(SPEC).embed("audio", torch.randn(5, 30))
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
