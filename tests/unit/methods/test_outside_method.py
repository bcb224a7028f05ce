"""A method of another package works like a built-in one: by its entry point, or by its import path."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.stream import main
from cmcl.contract.errors import UnknownMethod
from cmcl.contract.methods import installed_methods
from cmcl.contract.modality import ModalityPair
from cmcl.contract.model import ModelSpec, TrainingSpec
from tests.fakes.outside_method import MODULE, NAME, PLACE, installed
from tests.unit.benchmarks.command import answer_of
from tests.unit.benchmarks.tiny_stream import write_stream
from workers.methods.method import Vanilla
from workers.methods.registry import method_for
from workers.model.heads import PairedRows
from workers.train.learn import Task, initial_state, learn
from workers.train.rows import RowsInMemory
from workers.train.settings import code_digest

PAIR = ModalityPair(first="image", second="text")
SPEC = ModelSpec(
    width=8,
    modalities={"image": 12, "text": 6},
    method=NAME,
    training=TrainingSpec(epochs=2, batch_size=16),
)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path) as source:
        yield source


@pytest.mark.usefixtures("source")
def test_a_model_is_trained_with_the_method_of_an_entry_point() -> None:
    generator, keys = torch.Generator().manual_seed(0), torch.arange(64)
    image, text = (torch.randn(64, width, generator=generator) for width in (12, 6))
    before = initial_state(SPEC)
    task = Task(PAIR, RowsInMemory(PairedRows(image, text, keys, keys)), seed=1)
    then, now = before.heads.weights, learn(SPEC, before, task).model_state.heads.weights
    assert torch.equal(now["image"], then["image"])
    assert not torch.equal(now["text"], then["text"])


@pytest.mark.usefixtures("source")
def test_a_built_in_name_is_not_replaced() -> None:
    assert "vanilla" not in installed_methods()
    assert isinstance(method_for(SPEC.model_copy(update={"method": "vanilla"})), Vanilla)


@pytest.mark.usefixtures("source")
def test_what_is_no_method_is_refused_by_its_place() -> None:
    with pytest.raises(UnknownMethod, match=f"'{MODULE}:not_a_method' is not a subclass"):
        method_for(SPEC.model_copy(update={"method": "broken"}))


def test_a_method_that_is_not_installed_is_refused_with_those_that_are() -> None:
    with pytest.raises(UnknownMethod, match=rf"'{NAME}' is not installed.*known here: vanilla"):
        method_for(SPEC)


@pytest.mark.usefixtures("source")
def test_the_benchmark_runs_a_method_by_its_place(tmp_path: Path) -> None:
    folder = write_stream(tmp_path / "tiny")
    small = ("--width", "8", "--epochs", "2", "--seeds", "1", "--jobs", "1", "--json")
    methods = ("--methods", f"{PLACE},{NAME},vanilla")
    answer = answer_of(main, folder, *small, *methods, "--out", tmp_path / "out")
    assert answer.status == 0, answer.stderr
    found = answer.document["methods"]
    by_place, by_name, free = (found[name]["matrix"] for name in (PLACE, NAME, "vanilla"))
    assert by_place == by_name
    assert by_place != free


def test_the_benchmark_refuses_a_place_where_no_method_is(tmp_path: Path) -> None:
    answer = answer_of(main, write_stream(tmp_path / "tiny"), "--methods", "no.such.module:Method")
    assert answer.status == 2
    assert "'no.such.module:Method' cannot be imported" in answer.stderr


def test_ranks_that_stay_serve_no_attempt_after_the_method_was_edited(source: Path) -> None:
    """They imported the method when they first used it."""
    before = code_digest()
    assert code_digest() == before
    source.write_text(source.read_text() + "\n# edited\n")
    assert code_digest() != before
