"""What an attempt let go of goes back to the machine."""

import platform

import psutil
import pytest
import torch

from workers.train.pool.ranks import release_device_memory

PIECES, FLOATS = 200, 1 << 18
MIB = PIECES * FLOATS * 4 >> 20


def own_mib() -> float:
    return psutil.Process().memory_full_info().uss / 2**20


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only the allocator of glibc is configurable"
)
def test_memory_that_was_freed_goes_back_to_the_system() -> None:
    # glibc maps large blocks by themselves until one was let go of, as ranks that have read did.
    torch.empty(31 << 20, dtype=torch.uint8)
    # Small ones that stay keep glibc from releasing what is below them.
    pieces = [(torch.ones(FLOATS), torch.ones(FLOATS // 16)) for _ in range(PIECES)]
    stay = [small for _, small in pieces]
    del pieces
    before = own_mib()
    release_device_memory(torch.device("cpu"))
    assert own_mib() < before - MIB / 2
    assert len(stay) == PIECES
