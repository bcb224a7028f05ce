"""Heads start as a function of the spec; features reach them at unit length with a constant 1."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cmcl.contract.model import ModelSpec
from tests.architecture.documents import code_of
from tests.architecture.repository import ROOT
from workers.model.artifact import save_heads, save_selftest
from workers.model.heads import content_keys, initial_heads, unit_rows, with_constant
from workers.nullspace.conditioning import Conditioning, conditioning
from workers.nullspace.moments import SecondMoment, pair_moments

SPEC = ModelSpec(width=16, modalities={"image": 16, "text": 9, "audio": 30}, lift=0)
TWO = ModelSpec(width=2, modalities={"image": 2, "text": 2}, lift=0)

NUMPY_SPEC = ModelSpec(width=8, modalities={"image": 6, "text": 8}, lift=9)


def test_prepared_features_have_unit_length_and_a_constant() -> None:
    prepared = initial_heads(TWO).prepare("image", torch.tensor([[3.0, 4.0], [300.0, 400.0]]))
    torch.testing.assert_close(prepared, torch.tensor([[0.6, 0.8, 1.0], [0.6, 0.8, 1.0]]))


def test_content_keys_agree_exactly_where_rows_agree() -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2]], dtype=np.float32)
    first, second, third = content_keys(rows).tolist()
    assert first == third
    assert first != second


def test_head_of_equal_width_starts_as_identity() -> None:
    weight = initial_heads(SPEC).weights["image"]
    torch.testing.assert_close(weight, torch.eye(16, 17))


def test_conditioned_features_are_centred_mapped_and_of_unit_length() -> None:
    conditioning = Conditioning(torch.tensor([0.6, 0.0]), torch.diag(torch.tensor([5.0, 2.0])))
    heads = initial_heads(TWO).conditioned({"image": conditioning})
    prepared = heads.prepare("image", torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(prepared, torch.tensor([[0.0, 1.0, 1.0]]))


def test_conditioning_of_the_first_dataset_is_never_replaced() -> None:
    first, later = (Conditioning(torch.full((9,), x), torch.eye(9)) for x in (1.0, 2.0))
    heads = initial_heads(SPEC).conditioned({"text": first}).conditioned({"text": later})
    assert heads.conditioning == {"text": first}


def recipe() -> str:
    [code] = code_of((ROOT / "docs" / "heads.md").read_text(), "python")
    return code


def _moment(rows_BF: torch.Tensor) -> SecondMoment:
    rows_BI = with_constant(unit_rows(rows_BF))
    return pair_moments(rows_BI, rows_BI).first


def test_the_documented_recipe_gives_the_embeddings_of_the_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    rows_BF = torch.randn(50, 6, generator=generator) + 2
    heads = initial_heads(NUMPY_SPEC)
    conditioned = conditioning(_moment(rows_BF), 1e-2)
    weights = {
        name: torch.randn(each.shape, generator=generator) for name, each in heads.weights.items()
    }
    heads = heads.replaced(weights).conditioned({"image": conditioned})
    for name, data in zip(("heads", "inputs"), save_heads(heads), strict=True):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    (tmp_path / "selftest.safetensors").write_bytes(save_selftest(heads, NUMPY_SPEC))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(recipe(), names)  # the page's own code
    embed = names["embed"]
    assert callable(embed)
    selftest = load_file("selftest.safetensors")
    for modality in NUMPY_SPEC.modalities:
        given = embed(names["heads"], modality, selftest[f"{modality}/features"])
        np.testing.assert_allclose(given, selftest[f"{modality}/embeddings"], atol=1e-5)
    rows_BF[0] = conditioned.mean_F / conditioned.mean_F.norm()
    given = embed(names["heads"], "image", rows_BF.numpy())
    np.testing.assert_allclose(given, heads.embed("image", rows_BF).numpy(), atol=1e-5)
