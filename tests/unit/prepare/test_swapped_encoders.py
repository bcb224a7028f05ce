"""An encoder is swapped for another one of equal width: the folder of its model gets other weights.

Nothing else shows it: declaration, name and width are the same, and the features have the right shape.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.encoder import EncoderIdentity, EncoderSpec
from cmcl.contract.model import ModelSpec
from cmcl.storage.local import LocalStore
from tests.fakes.encoders import write_weights
from tests.fakes.preparation import Ground
from workers.encoders.port import EncoderMismatch, FrozenEncoder, load_encoder
from workers.prepare.cluster import EncoderActor
from workers.prepare.dataset import PreparationFailed
from workers.prepare.tasks import end_children
from workers.serve.encoders.port import Refusal
from workers.serve.encoders.queue import IdentityCheck

WIDTH = 4
MODEL = ModelSpec.model_validate(
    {
        "width": 8,
        "modalities": {"image": 2, "text": {"width": WIDTH, "encoder": "letters"}},
        "training": {"batch_size": 8},
    }
)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(LocalStore(tmp_path / "store"), tmp_path / "theirs", MODEL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the model, with its first weights."""
    write_weights(tmp_path / "letters", seed=0, width=WIDTH)
    return tmp_path / "letters"


@pytest.fixture
def spec(folder: Path) -> EncoderSpec:
    return EncoderSpec(
        name="letters",
        kind="tests.fakes.encoders:WeightsEncoder",
        takes="text",
        width=WIDTH,
        model=str(folder),
    )


@pytest.fixture(scope="module", autouse=True)
def closed_children() -> Iterator[None]:
    yield
    end_children()


def prepared(ground: Ground, spec: EncoderSpec, dataset: str, **fields: Any) -> EncoderIdentity:
    """Prepare other rows as another dataset, and return the identity of the encoder that was used."""
    texts = (f"caption {row} of {dataset}" for row in range(16))
    rows = [{"id": str(row), "image": [1, row], "text": text} for row, text in enumerate(texts)]
    (ground.folder / "raw.jsonl").write_text("\n".join(map(json.dumps, rows)))
    request = ground.request("raw.jsonl", dataset=dataset, encoders={"text": spec}, **fields)
    return ground.prepare(request).encoders["text"]


def asked(encoder: FrozenEncoder[Any], ground: Ground, expected: EncoderIdentity) -> Refusal | None:
    """Ask a process of the endpoint for features of this identity."""

    async def between_passes(function: Callable[[], Any]) -> Any:
        return function()

    return asyncio.run(IdentityCheck(encoder, ground.store, between_passes).refusal(expected))


def test_an_encoder_swapped_for_another_of_equal_width_is_refused_at_prepare(
    ground: Ground, spec: EncoderSpec, folder: Path
) -> None:
    first = prepared(ground, spec, "ds-1")
    write_weights(folder, seed=1, width=WIDTH)
    message = f"'letters' is not the one .*: files is .*, expected '{first.files}'"
    with pytest.raises(PreparationFailed, match=message) as caught:
        prepared(ground, spec, "ds-2", identities={"text": first})
    assert caught.value.reason == "encoder_mismatch"
    write_weights(folder, seed=0, width=WIDTH)
    assert prepared(ground, spec, "ds-2", request=1, identities={"text": first}) == first


def test_an_encoder_swapped_for_another_of_equal_width_is_refused_at_the_endpoint(
    ground: Ground, spec: EncoderSpec, folder: Path
) -> None:
    first = prepared(ground, spec, "ds-1")
    assert asked(load_encoder(spec), ground, first) is None
    write_weights(folder, seed=1, width=WIDTH)
    refusal = asked(load_encoder(spec), ground, first)
    assert isinstance(refusal, EncoderMismatch)
    assert f"files is '{load_encoder(spec).identity().files}', expected '{first.files}'" in str(
        refusal
    )


def test_an_encoder_swapped_for_another_of_equal_width_is_refused_after_a_restart(
    ground: Ground, spec: EncoderSpec, folder: Path
) -> None:
    """A process that runs has its weights in memory. The swap shows when it is started again."""
    first = prepared(ground, spec, "ds-1")
    actor, replica = EncoderActor(spec, ground.store.uri), load_encoder(spec)
    assert actor.start() == first
    write_weights(folder, seed=1, width=WIDTH)
    assert actor.encode(["a"], first.digest, "batch 1").errors == {}
    assert asked(replica, ground, first) is None
    actor, replica = EncoderActor(spec, ground.store.uri), load_encoder(spec)
    # Ray restarts an actor by itself, and its next batch names the expected identity.
    with pytest.raises(EncoderMismatch, match="was loaded again and is another one"):
        actor.encode(["a"], first.digest, "batch 2")
    assert isinstance(asked(replica, ground, first), EncoderMismatch)
    with pytest.raises(PreparationFailed, match="files is"):
        prepared(ground, spec, "ds-2", identities={"text": first})
