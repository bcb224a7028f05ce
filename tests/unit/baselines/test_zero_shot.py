"""Zero-shot: cosines of the features themselves."""

import pytest
import torch

from benchmarks.baselines.zero_shot import ZeroShot
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.model.heads import PairedRows
from workers.model.loss import unit
from workers.train.learn import Task, initial_state, learn
from workers.train.rows import RowsInMemory

PAIR = ModalityPair(first="image", second="text")
SPEC = ModelSpec(width=8, modalities={"image": 8, "text": 8, "audio": 8}, method="zero_shot")


def rows_of(seed: int) -> PairedRows:
    generator, keys = torch.Generator().manual_seed(seed), torch.arange(150)
    image, text = (torch.randn(150, 8, generator=generator) + 0.5 for _ in PAIR.modalities)
    return PairedRows(image, text, keys, keys)


def test_scores_are_cosines_of_features_whatever_was_learned() -> None:
    method, state = ZeroShot.from_spec(SPEC), initial_state(SPEC)
    for seed in (0, 1):
        state = learn(
            SPEC, state, Task(PAIR, RowsInMemory(rows_of(seed)), seed), method=method
        ).model_state
    query = rows_of(2)
    for name, rows in (("image", query.first_NI), ("text", query.second_NJ)):
        torch.testing.assert_close(state.heads.embed(name, rows), unit(rows), rtol=0, atol=1e-5)
    untouched = initial_state(SPEC).heads.weights["audio"]
    assert torch.equal(state.heads.weights["audio"], untouched)


def test_encoders_without_a_common_space_are_refused_in_words() -> None:
    spec = ModelSpec(width=8, modalities={"image": 8, "text": 6})
    with pytest.raises(ValueError, match=r"one common space.*\(8\).*image 8, text 6"):
        ZeroShot.from_spec(spec)
