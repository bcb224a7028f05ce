"""Encoders, each loaded once in a session; and bounds on the cost of rejecting a bad file."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cmcl.contract.encoder import EncoderSpec
from tests.fakes.encoder_cases import BINDING, BINDING_UPSTREAM, EXAMPLES, Folders
from workers.encoders.port import FrozenEncoder, load_encoder

Loaded = Callable[[EncoderSpec], FrozenEncoder[Any]]
Bounded = Callable[[float, int], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def loaded() -> Iterator[Loaded]:
    """Loads an encoder, once for all tests. Those of the examples are on the path."""
    known: dict[str, FrozenEncoder[Any]] = {}

    def load(spec: EncoderSpec) -> FrozenEncoder[Any]:
        key = spec.model_dump_json()
        if key not in known:
            known[key] = load_encoder(spec)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for folder in (EXAMPLES, BINDING, BINDING_UPSTREAM):
            patch.syspath_prepend(folder)
        yield load


@pytest.fixture
def bounded() -> Bounded:
    """`with bounded(seconds, mebibytes):` fails where the block takes longer, or more memory at its peak."""
    return _bounded


@contextmanager
def _bounded(seconds: float, mebibytes: int) -> Iterator[None]:
    gc.collect()
    before = _status("VmRSS")
    # Resets the peak of this process to its present size.
    Path("/proc/self/clear_refs").write_text("5")
    started = time.process_time()
    yield
    took, peak = time.process_time() - started, (_status("VmHWM") - before) / 1024
    assert took < seconds, f"{took:.1f} s of CPU"
    assert peak < mebibytes, f"{peak:.0f} MiB at the peak"


def _status(field: str) -> int:
    """In KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])
