"""Ridge regression onto a frozen space: the normal equations, by rows, over several datasets."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.ridge import RidgeOntoFrozen
from cmcl.contract.modality import ModalityPair
from tests.fakes.rotated_rows import seen
from tests.unit.methods.contexts import AUDIO_IMAGE, IMAGE_TEXT, context_on, random_rows
from workers.model.heads import ModalityHeads
from workers.model.memory import Memory
from workers.model.rows import PairedRows
from workers.nullspace.centred import dataset_moments

AUDIO_TEXT = ModalityPair(first="audio", second="text")
METHOD = RidgeOntoFrozen(temperature=0.07, ridge=0.01)


def learned(
    datasets: list[tuple[ModalityPair, PairedRows]], method: RidgeOntoFrozen = METHOD
) -> list[ModalityHeads]:
    """The heads after each dataset."""
    context, memory, after = context_on(IMAGE_TEXT), Memory(), []
    for pair, rows in datasets:
        context = replace(context, pair=pair)
        ridges = dict.fromkeys(pair.modalities, 0.02)
        memory = memory.with_sums(pair, dataset_moments(seen(rows).moments), ridges)
        heads = context.heads.replaced(method.solve(context, memory).weights)
        state = method.next_state(context, heads, seen(rows))
        context = replace(context, heads=heads, method_state=state)
        after.append(heads)
    return after


def slope(
    weight: Tensor, parts: list[tuple[Tensor, Tensor, Tensor]], ridge: float
) -> tuple[Tensor, Tensor]:
    """Half the gradient of the objective, and its part by the ridge; each part is x_u, x_v and W_v."""
    leaf = weight.double().requires_grad_()
    fit = torch.zeros((), dtype=torch.float64)
    total = sum(len(own) ** 0.5 for own, _, _ in parts)
    for own, partner, target in parts:
        weight_of_dataset = len(own) ** 0.5
        error = own @ leaf.mT - partner @ target.double().mT
        fit = fit + weight_of_dataset * error.square().sum(dim=1).mean()
    # The covariance over all rows, each by the weight of its dataset.
    shares = (
        torch.cat([own.new_full((len(own), 1), len(own) ** -0.5) for own, _, _ in parts]) / total
    )
    rows = torch.cat([own[:, :-1] for own, _, _ in parts])
    centred = rows - (shares * rows).sum(0)
    covariance = (shares * centred).mT @ centred
    typical = covariance.square().sum() / covariance.trace()
    penalised = leaf.detach().clone()
    penalised[:, -1] = 0
    return torch.autograd.grad(fit / 2, leaf)[0], ridge * typical * total * penalised


def test_solution_satisfies_its_normal_equations() -> None:
    """Text is frozen, image is regressed on text, and audio on both, over datasets of different sizes."""
    datasets = [
        (IMAGE_TEXT, random_rows(IMAGE_TEXT, seed=1, rows=40)),
        (AUDIO_IMAGE, random_rows(AUDIO_IMAGE, seed=2, rows=20)),
        (AUDIO_TEXT, random_rows(AUDIO_TEXT, seed=3, rows=30)),
        (IMAGE_TEXT, random_rows(IMAGE_TEXT, seed=4, rows=10)),
    ]
    *_, heads = learned(datasets)
    rows = [rows for _, rows in datasets]
    text, image = heads.weights["text"], heads.weights["image"]
    equations = {
        "image": [(one.first_NI, one.second_NJ, text) for one in (rows[0], rows[3])],
        "audio": [
            (rows[1].first_NI, rows[1].second_NJ, image),
            (rows[2].first_NI, rows[2].second_NJ, text),
        ],
    }
    for name, parts in equations.items():
        fit, penalty = slope(heads.weights[name], parts, ridge=0.01)
        assert float(penalty.abs().max()) > 1e-3
        torch.testing.assert_close(fit, -penalty, rtol=1e-4, atol=1e-5)


def test_frozen_head_subtracts_its_first_mean_and_stays() -> None:
    datasets = [(IMAGE_TEXT, random_rows(IMAGE_TEXT, seed=n)) for n in (1, 2)]
    after = learned(datasets)
    start, frozen = context_on(IMAGE_TEXT).heads.weights["text"], after[0].weights["text"]
    assert torch.equal(frozen[:, :-1], start[:, :-1])
    mean = (datasets[0][1].second_NJ @ frozen.mT).mean(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    assert torch.equal(after[1].weights["text"], frozen)
    assert not torch.equal(after[0].weights["image"], after[1].weights["image"])


def test_of_two_new_modalities_the_second_is_frozen_unless_one_is_named() -> None:
    datasets = [(AUDIO_IMAGE, random_rows(AUDIO_IMAGE, seed=2))]
    start = context_on(AUDIO_IMAGE).heads.weights
    for method, regressed in ((METHOD, "audio"), (replace(METHOD, frozen="audio"), "image")):
        (heads,) = learned(datasets, method)
        moved = [
            name
            for name, head in heads.weights.items()
            if not torch.equal(head[:, :-1], start[name][:, :-1])
        ]
        assert moved == [regressed]


def test_ridge_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="ridge is 0; permitted is more than 0"):
        RidgeOntoFrozen(temperature=0.07, ridge=0)
