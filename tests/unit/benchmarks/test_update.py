"""The update benchmark: compared updates compute the same, and its document is complete."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.protected import MaskedPair, random_setting
from benchmarks.published import PlainPair, PublishedPair, projection
from benchmarks.update import alternate, main
from cmcl.contract.model import TrainingSpec
from workers.methods.method import Recipe
from workers.model.pair import rotate
from workers.nullspace.mask import UpdateSpace, everything_free
from workers.nullspace.moments import SecondMoment
from workers.train.loop import EPSILON

WIDTH = 32
SPEC = TrainingSpec()


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """The benchmark sets them for its whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(64, generator=generator)[:8] for _ in range(count)]


def test_last_line_has_every_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width", "32", "--batches", "4,8", "--repeats", "1", "--threads", "1"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = {"vanilla", "masked", "published"}
    times = {f"{kind}_ms" for kind in kinds} | {f"{kind}_p95_ms" for kind in kinds}
    ratios = {"masked_to_vanilla", "published_to_masked"}
    assert list(answer["batches"]) == ["4", "8"]
    for found in answer["batches"].values():
        assert set(found) == times | ratios | {f"{name}_p95" for name in ratios}
        assert all(value > 0 for value in found.values())
    start = answer["start_ms"]
    assert min(start["ours"], start["published"], start["ratio"]) > 0
    assert list(start["per earlier datasets"]) == ["1", "10", "100"]
    assert answer["moments_gemm_share"] > 0
    assert answer["machine"]["threads"] == 1
    assert "torch" in answer["versions"]
    assert json.loads((tmp_path / "update-32.json").read_text()) == answer
    page = (tmp_path / "update-32.md").read_text()
    parts = ["# Updates", "## Question", "## Machine", "## Configuration", "## Result"]
    assert [part for part in parts if part not in page] == []


def test_masked_update_is_plain_where_nothing_is_blocked() -> None:
    setting = random_setting(WIDTH, 64)
    free = everything_free(WIDTH, WIDTH)
    # One decays the heads, the other one their changes.
    plain = PlainPair(setting.weights, setting.rows, SPEC, 0.0)
    masked = MaskedPair(setting.weights, setting.rows, SPEC, (free, free), 0.0)
    for index_B in batches(5):
        plain.update(index_B)
        masked.update(index_B)
    for ours, theirs, start in zip(
        masked.pair.weights(), plain.weights, setting.weights, strict=True
    ):
        assert not torch.allclose(theirs, start, atol=1e-3)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_masked_update_leaves_what_is_blocked() -> None:
    setting = random_setting(WIDTH, 64)
    masked = MaskedPair(setting.weights, setting.rows, TrainingSpec(), setting.spaces)
    for index_B in batches(5):
        masked.update(index_B)
    for change_EI, space in zip(masked.pair.changes, setting.spaces, strict=True):
        assert 0 < space.blocked_share < 1
        assert (change_EI[~space.free_EI] == 0).all()
        assert (change_EI[space.free_EI] != 0).all()


def test_scores_do_not_depend_on_who_has_which_output_basis() -> None:
    """If both heads have one basis, the rotation between the two is left out."""
    setting = random_setting(WIDTH, 64)
    one, other = setting.spaces
    moved = UpdateSpace(one.outputs, other.inputs, other.free_EI)
    index_B = torch.arange(8)
    for spaces in ((one, other), (one, moved)):
        masked = MaskedPair(setting.weights, setting.rows, TrainingSpec(), spaces)
        batch = setting.rows.at(index_B)
        rotated = (rotate(batch.first_NI, spaces[0]), rotate(batch.second_NJ, spaces[1]))
        first, second = masked.pair(*rotated)
        expected = (batch.first_NI @ setting.weights[0].mT) @ (
            batch.second_NJ @ setting.weights[1].mT
        ).mT
        torch.testing.assert_close(first @ second.mT, expected, atol=1e-5, rtol=0)
        (first_EI, second_EI), (left, right) = masked.pair.weights(), rotated
        scores = (left @ first_EI.mT) @ (right @ second_EI.mT).mT
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_published_update_is_that_of_a_slow_reference() -> None:
    setting = random_setting(WIDTH, 64)
    spec = TrainingSpec()
    left, right = (mean_projections(both) for both in setting.moments)
    pair = PublishedPair(setting.weights, setting.rows, spec, (left, right))
    weights = [weight.double().numpy() for weight in setting.weights]
    states = [(np.zeros_like(weight), np.zeros_like(weight)) for weight in weights]
    for step, index_B in enumerate(batches(3), start=1):
        pair.update(index_B)
        rows = setting.rows.at(index_B)
        sides = rows.first_NI.double().numpy(), rows.second_NJ.double().numpy()
        gradients = slow_gradients(weights, sides, spec.temperature)
        for head, (outputs, inputs) in enumerate((left, right)):
            gradient = gradients[head] - outputs.double().numpy() @ gradients[head] @ (
                inputs.double().numpy()
            )
            slow_adamw(weights[head], gradient, states[head], step, spec)
    for found, expected in zip(pair.weights, weights, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5)


def mean_projections(both: tuple[SecondMoment, SecondMoment]) -> tuple[torch.Tensor, torch.Tensor]:
    """Thresholds that leave part of both spaces, so that a swapped side is seen."""
    outputs, inputs = both
    return projection(outputs.mean_II.float(), 0.03), projection(inputs.mean_II.float(), 0.06)


def slow_gradients(
    weights: list[np.ndarray], sides: tuple[np.ndarray, np.ndarray], temperature: float
) -> list[np.ndarray]:
    """∂InfoNCE/∂W of both heads, by hand in float64."""
    raw = [side @ weight.T for side, weight in zip(sides, weights, strict=True)]
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in raw]
    first, second = (one / length for one, length in zip(raw, lengths, strict=True))
    scores = first @ second.T / temperature
    share = np.exp(scores - scores.max(1, keepdims=True))
    forward = share / share.sum(1, keepdims=True)
    share = np.exp(scores - scores.max(0, keepdims=True))
    backward = share / share.sum(0, keepdims=True)
    by_scores = (forward + backward - 2 * np.eye(len(first))) / (2 * len(first) * temperature)
    by_units = by_scores @ second, by_scores.T @ first
    found = []
    for by_unit, one, length, side in zip(by_units, (first, second), lengths, sides, strict=True):
        by_raw = (by_unit - one * (by_unit * one).sum(1, keepdims=True)) / length
        found.append(by_raw.T @ side)
    return found


def slow_adamw(
    weight: np.ndarray,
    gradient: np.ndarray,
    state: tuple[np.ndarray, np.ndarray],
    step: int,
    spec: TrainingSpec,
) -> None:
    """One step in place (arXiv 1711.05101)."""
    mean, square = state
    weight *= 1 - spec.learning_rate * Recipe.weight_decay
    mean += 0.1 * (gradient - mean)
    square += 0.001 * (gradient**2 - square)
    corrected = mean / (1 - 0.9**step), square / (1 - 0.999**step)
    weight -= spec.learning_rate * corrected[0] / (np.sqrt(corrected[1]) + EPSILON)


def test_projection_keeps_what_lies_above_the_threshold() -> None:
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    moment = turn @ torch.diag(torch.tensor([0.5, 0.2, 0.05, 0.0])) @ turn.mT
    expected = turn[:, :2] @ turn[:, :2].mT
    torch.testing.assert_close(projection(moment, 0.1), expected, atol=1e-5, rtol=0)


def test_every_round_runs_all_tasks_in_rotation() -> None:
    order: list[str] = []
    seconds = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
