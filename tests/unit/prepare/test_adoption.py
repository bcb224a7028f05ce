"""The forecast for another encoder's vectors, beside what its head then has."""

from functools import cache

import pytest
import torch
from torch import Tensor

from benchmarks.chain import Dataset, learn_one, remember
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec
from workers.files.shards import Rows
from workers.model.heads import ModalityHeads, PairedRows
from workers.prepare.adoption import Forecast, _Errors, forecast
from workers.train.dataset import paired_rows
from workers.train.evaluation import HeldOut, held_out, recall
from workers.train.learn import ModelState, initial_state

TEXT_IMAGE = ModalityPair(first="text", second="image")
OLD_IMAGE = ModalityPair(first="old", second="image")
SPEC = ModelSpec.model_validate(
    {
        "width": 16,
        "lift": 0,
        "centred": False,
        "modalities": {"text": 12, "image": 20, "old": {"width": 20, "aligned_to": "image"}},
    }
)


def items(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Texts and pictures of the same ten numbers."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(10, 32, generator=torch.Generator().manual_seed(99))
    made = torch.randn(rows, 10, generator=generator) @ mixing
    made = made + 1.5 * torch.randn(rows, 32, generator=generator)
    return made[:, :12], made[:, 12:]


def by_old(images_NF: Tensor, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(len(images_NF))
    turn_FF = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(3))).Q
    return images_NF @ turn_FF + noise * torch.randn(images_NF.shape, generator=generator)


def rows_of(first: Tensor, second: Tensor) -> Rows:
    return Rows(first.numpy(), second.numpy(), None)


HELD_OUT = held_out(rows_of(*items(2, 300)))


@cache
def learned() -> tuple[ModelState, tuple[object, ...]]:
    dataset = Dataset("captions", TEXT_IMAGE, paired_rows(rows_of(*items(1, 600))), HELD_OUT)
    result = learn_one(SPEC, initial_state(SPEC), dataset, ())
    return result.model_state, (remember(dataset, result),)


def sample(noise: float, rows: int = 300) -> PairedRows:
    images = items(4, rows)[1]
    return paired_rows(rows_of(by_old(images, noise), images))


def predicted(noise: float, rows: int = 300) -> Forecast | None:
    heads = learned()[0].heads
    return forecast(heads, OLD_IMAGE, sample(noise, rows), [(TEXT_IMAGE, HELD_OUT)])


def measured(noise: float) -> float:
    """R@10 of texts on new items by the old encoder, relative to that on them by the model's."""
    state, earlier = learned()
    dataset = Dataset("sample", OLD_IMAGE, sample(noise), HELD_OUT)
    joined = learn_one(SPEC, state, dataset, earlier).model_state.heads  # type: ignore[arg-type]
    texts, images = items(7, 600)
    held = held_out(rows_of(texts, images))
    return found(joined, texts, by_old(images, noise), "old", held) / found(
        state.heads, texts, images, "image", held
    )


def found(heads: ModalityHeads, texts: Tensor, vectors: Tensor, name: str, held: HeldOut) -> float:
    return recall(heads.embed("text", texts), heads.embed(name, vectors), held).at_10


@pytest.mark.parametrize("noise", [0.0, 2.0, 6.0])
def test_it_is_what_the_joined_head_then_has(noise: float) -> None:
    told = predicted(noise)
    assert told is not None
    has = measured(noise)
    assert told.share == pytest.approx(has, abs=0.07)
    assert told.low <= told.share <= told.high
    assert told.doubled >= told.share
    # The three cases are far apart.
    assert {0.0: has > 0.97, 2.0: 0.8 < has < 0.97, 6.0: has < 0.6}[noise]


def test_a_tenth_of_the_pairs_would_be_found_less_well() -> None:
    few, many = predicted(2.0, 60), predicted(2.0, 600)
    assert few is not None
    assert many is not None
    assert few.share < many.share - 0.02


def test_nothing_is_predicted_without_held_out_rows_or_from_few_pairs() -> None:
    heads = learned()[0].heads
    assert forecast(heads, OLD_IMAGE, sample(0.0), []) is None
    assert predicted(0.0, 49) is None


def test_rests_of_few_rows_are_as_large_as_those_of_other_rows() -> None:
    """A fourth of the 32 rows' freedom goes into the map."""
    generator = torch.Generator().manual_seed(5)
    sizes = []
    for _ in range(100):
        wanted_NE = torch.randn(32, 8, generator=generator)
        errors = _Errors.measured(wanted_NE, wanted_NE + torch.randn(32, 8, generator=generator))
        sizes.append(float(errors.rest_NE.square().mean()))
    # The mean takes another degree of freedom, which is not counted.
    assert sum(sizes) / len(sizes) == pytest.approx(31 / 32, abs=0.06)
