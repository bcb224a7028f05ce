"""The recipe of docs/heads.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cmcl.contract.model import ModelSpec
from tests.architecture.repository import ROOT
from workers.model.artifact import save_heads, save_selftest
from workers.model.heads import initial_heads, unit_rows, with_constant
from workers.nullspace.conditioning import conditioning
from workers.nullspace.moments import SecondMoment, pair_moments

SPEC = ModelSpec(width=8, modalities={"image": 6, "text": 8})


def recipe() -> str:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "heads.md").read_text(), re.DOTALL)
    return code


def _moment(rows_BF: torch.Tensor) -> SecondMoment:
    rows_BI = with_constant(unit_rows(rows_BF))
    return pair_moments(rows_BI, rows_BI).first


def test_the_documented_recipe_gives_the_embeddings_of_the_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    rows_BF = torch.randn(50, 6, generator=generator) + 2
    heads = initial_heads(SPEC)
    weight_EI = torch.randn(8, 7, generator=generator)
    heads = heads.replaced({"image": weight_EI}).conditioned(
        {"image": conditioning(_moment(rows_BF), 1e-2)}
    )
    (tmp_path / "heads.safetensors").write_bytes(save_heads(heads))
    (tmp_path / "selftest.safetensors").write_bytes(save_selftest(heads, SPEC))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(recipe(), names)  # the page's own code
    embed = names["embed"]
    assert callable(embed)
    selftest = load_file("selftest.safetensors")
    for modality in SPEC.modalities:
        given = embed(names["heads"], modality, selftest[f"{modality}/features"])
        np.testing.assert_allclose(given, selftest[f"{modality}/embeddings"], atol=1e-5)
    given = embed(names["heads"], "image", rows_BF.numpy())
    np.testing.assert_allclose(given, heads.embed("image", rows_BF).numpy(), atol=1e-5)
