"""Any bytes are read as safetensors reads them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load as library_load
from safetensors.torch import save

from workers.model.tensor_bytes import load

TENSORS = {
    "matrix": torch.arange(12.0).reshape(3, 4),
    "none": torch.zeros(0, 5),
    "number": torch.tensor(2.5),
}
WHOLE = save(TENSORS, metadata={"by": "test"})


@pytest.mark.parametrize(
    "tensors",
    [TENSORS, {}, {"whole": torch.arange(3)}, {"half": torch.ones(2, dtype=torch.bfloat16)}],
)
def test_tensors_survive_a_round_trip(tensors: dict[str, torch.Tensor]) -> None:
    found = load(save(tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


def test_tensors_can_be_written_to_and_share_nothing() -> None:
    first, second = load(WHOLE), load(WHOLE)
    first["matrix"].zero_()
    torch.testing.assert_close(second["matrix"], TENSORS["matrix"])


@given(st.binary(max_size=64))
@settings(max_examples=200)
def test_rubbish_is_refused_with_the_message_of_the_library(data: bytes) -> None:
    with pytest.raises(SafetensorError) as ours:
        load(data)
    with pytest.raises(SafetensorError) as theirs:
        library_load(data)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("length", range(0, len(WHOLE), 7))
def test_a_file_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises(SafetensorError):
        load(WHOLE[:length])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [100, 108]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 70], "data_offsets": [0, 1 << 72]},
        ["F32"],
        None,
    ],
)
def test_a_header_with_false_lengths_is_rejected(entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    with pytest.raises(SafetensorError):
        load(len(header).to_bytes(8, "little") + header + bytes(8))
