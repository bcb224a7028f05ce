"""One stream through one method, and through joint training."""

import pytest
import torch

from benchmarks.chain import Dataset, learn_one, run_chain
from benchmarks.folder import Stream, read_stream
from benchmarks.joint import (
    JointSetting,
    _Joint,
    closed_form_heads,
    conditioned_heads,
    mean_heads,
    train_jointly,
)
from benchmarks.runs import spec_of
from cmcl.contract.model import ModelSpec
from tests.unit.benchmarks.tiny_stream import write_stream
from workers.model.heads import initial_heads
from workers.train.evaluation import measure
from workers.train.learn import initial_state, prepare_rows


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return read_stream(write_stream(tmp_path_factory.mktemp("chain") / "tiny"))


def spec(stream: Stream, method: str = "vanilla", **training: object) -> ModelSpec:
    settings = {"epochs": 2, "batch_size": 16, **training}
    return spec_of(method, {"width": 8, "modalities": stream.widths, "training": settings})


def test_the_chain_measures_all_datasets_after_each(stream: Stream) -> None:
    outcome = run_chain(stream.datasets, spec(stream))
    assert [len(row) for row in outcome.matrix] == [3, 3, 3]
    assert len(outcome.drifts) == 2
    assert min(outcome.drifts) > 0
    heads = initial_heads(spec(stream))
    assert outcome.untrained == [measure(heads, d.pair, d.held_out) for d in stream.datasets]


def test_a_diverged_training_is_an_error_and_no_figure(stream: Stream) -> None:
    cold = spec(stream, temperature=1e-45)
    with pytest.raises(ArithmeticError, match=r"01_one_vt: the training diverged: .* update 1 of"):
        run_chain(stream.datasets, cold)
    with pytest.raises(ArithmeticError, match="joint training diverged"):
        train_jointly(stream.datasets, cold, [1])


def test_joint_conditions_as_the_chain_does(stream: Stream) -> None:
    model_state = initial_state(spec(stream))
    for dataset in stream.datasets:
        model_state = learn_one(spec(stream), model_state, dataset, ()).model_state
    joint = conditioned_heads(stream.datasets, spec(stream)).conditioning
    chain = model_state.heads.conditioning
    assert sorted(joint) == sorted(chain) == ["a", "t", "v"]
    for modality in joint:
        assert torch.equal(joint[modality].mean_F, chain[modality].mean_F)
        assert torch.equal(joint[modality].map, chain[modality].map)


def joint_of(stream: Stream, datasets: tuple[Dataset, ...], spec: ModelSpec) -> _Joint:
    heads = conditioned_heads(stream.datasets, spec)
    rows = [prepare_rows(heads, one.pair, one.training) for one in datasets]
    return _Joint([one.pair for one in datasets], rows, heads, spec)


def test_one_joint_update_is_that_of_plain_torch(stream: Stream) -> None:
    whole = spec(stream, batch_size=64)
    dataset, heads = stream.datasets[0], conditioned_heads(stream.datasets, whole)
    joint = joint_of(stream, (dataset,), whole)
    joint.train_epoch()

    start = [heads.weights[modality].clone() for modality in dataset.pair.modalities]
    changes = [torch.zeros_like(weight, requires_grad=True) for weight in start]
    rows = prepare_rows(heads, dataset.pair, dataset.training)
    first, second = (
        torch.nn.functional.normalize(x @ (weight + change).T, dim=1)
        for x, weight, change in zip((rows.first_NI, rows.second_NJ), start, changes, strict=True)
    )
    scores, each = first @ second.T / 0.07, torch.arange(64)
    cross_entropy = torch.nn.functional.cross_entropy
    ((cross_entropy(scores, each) + cross_entropy(scores.T, each)) / 2).backward()
    torch.optim.AdamW(changes, lr=1e-3, weight_decay=1e-2).step()

    trained = joint.heads().weights
    for modality, weight, change in zip(dataset.pair.modalities, start, changes, strict=True):
        expected = (weight + change).detach()
        assert not torch.allclose(trained[modality], weight, atol=5e-4)
        assert torch.allclose(trained[modality], expected, atol=2e-5)
    assert torch.equal(trained["a"], heads.weights["a"])


def test_a_joint_epoch_sees_every_row_once(stream: Stream) -> None:
    batches = list(joint_of(stream, stream.datasets, spec(stream))._batches())
    assert len(batches) == 12
    assert [dataset for dataset, _ in batches] != sorted(dataset for dataset, _ in batches)
    for number in range(3):
        seen = torch.cat([index_B for dataset, index_B in batches if dataset == number])
        assert sorted(seen.tolist()) == list(range(64))


def test_joint_training_can_start_from_the_heads_of_the_stream(stream: Stream) -> None:
    solved = spec(stream, "improve")
    start = closed_form_heads(stream.datasets, solved)
    last = run_chain(stream.datasets, solved).matrix[-1]
    assert [measure(start, one.pair, one.held_out) for one in stream.datasets] == last
    setting = JointSetting(averaged=True, from_closed_form=True)
    outcome = train_jointly(stream.datasets, solved, [2], setting)
    assert outcome.recalls[2] != train_jointly(stream.datasets, solved, [2]).recalls[2]


def test_averaged_heads_are_the_mean_of_the_second_half(stream: Stream) -> None:
    joint = joint_of(stream, stream.datasets, spec(stream))
    after = []
    for _ in range(4):
        joint.train_epoch()
        after.append(joint.heads())
    mean = mean_heads(after[2:])
    expected = [measure(mean, one.pair, one.held_out) for one in stream.datasets]
    outcome = train_jointly(stream.datasets, spec(stream), [4], JointSetting(averaged=True))
    assert outcome.recalls[4] == expected
    weight = (after[2].weights["v"] + after[3].weights["v"]) / 2
    torch.testing.assert_close(mean.weights["v"], weight)
