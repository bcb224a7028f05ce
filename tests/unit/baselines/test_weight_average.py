"""Weight averaging: the mean over datasets, and training from it."""

import pytest
import torch

from benchmarks.baselines.weight_average import WeightAverage, WeightEMA
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from workers.methods.method import Method, Vanilla
from workers.model.rows import PairedRows
from workers.train.data.rows import HeldRows
from workers.train.learn import ModelState, Task, initial_state, learn

SPEC = ModelSpec(
    width=6,
    modalities={"image": 9, "text": 5, "audio": 7},
    method="vanilla",
    training=TrainingSpec(epochs=2, batch_size=16, learning_rate=1e-2),
)
STREAM = (("image", "text"), ("image", "audio"), ("image", "text"))


def after(method: Method, before: ModelState, number: int) -> ModelState:
    first, second = STREAM[number]
    generator, keys = torch.Generator().manual_seed(number), torch.arange(32)
    one, other = (
        torch.randn(32, SPEC.widths[name], generator=generator) for name in (first, second)
    )
    task = Task(
        ModalityPair(first=first, second=second),
        HeldRows(PairedRows(one, other, keys, keys)),
        seed=number,
    )
    return learn(SPEC, before, task, method=method).model_state


@pytest.mark.parametrize("method", [WeightAverage(), WeightEMA()])
def test_first_dataset_is_training_without_protection_to_the_bit(method: Method) -> None:
    start = initial_state(SPEC)
    found, alone = (after(one, start, 0).heads.weights for one in (method, Vanilla()))
    assert all(torch.equal(found[name], alone[name]) for name in SPEC.widths)


@pytest.mark.parametrize(
    ("method", "rates"), [(WeightAverage(), (1 / 2, 1 / 3)), (WeightEMA(alpha=0.2), (0.2, 0.2))]
)
def test_heads_are_the_mean_of_their_datasets(
    method: WeightAverage, rates: tuple[float, float]
) -> None:
    """A head counts its own datasets: audio has its first in the second, text its second in the third."""
    state = after(method, initial_state(SPEC), 0)
    image_rates = rates
    for number, image_rate in enumerate(image_rates, start=1):
        before, free = state.heads.weights, after(Vanilla(), state, number).heads.weights
        state = after(method, state, number)
        found = state.heads.weights
        torch.testing.assert_close(
            found["image"], before["image"] + image_rate * (free["image"] - before["image"])
        )
        if number == 1:
            assert torch.equal(found["audio"], free["audio"])
            assert torch.equal(found["text"], before["text"])
        else:
            text = before["text"] + rates[0] * (free["text"] - before["text"])
            torch.testing.assert_close(found["text"], text)


def test_alpha_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha is 0; permitted is above 0 to 1"):
        WeightEMA(alpha=0)
