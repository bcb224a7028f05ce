"""One warm child for the tests of a module, and a scratch folder that must be empty afterwards."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.raw_files import Dataset
from workers.prepare.units import SideSpec
from workers.sandbox.child import Child, ChildLimits

NewDataset = Callable[..., Dataset]


@pytest.fixture(scope="module")
def reader_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        child = Child(ChildLimits(memory=768 << 20, seconds=120))
    yield child
    assert list(child.scratch.path.iterdir()) == []
    child.close()
    assert list(folder.iterdir()) == []


@pytest.fixture
def dataset(tmp_path: Path, reader_child: Child) -> NewDataset:
    def make(*sides: SideSpec) -> Dataset:
        return Dataset(tmp_path / "data", reader_child, *sides)

    return make
