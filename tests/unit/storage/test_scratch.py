"""Room on the local disk is taken before it is needed, and what is too little is said at once."""

import re
import shutil
import tempfile
from contextlib import closing

import pytest

from cmcl.contract.errors import StorageUnavailable
from workers.storage.scratch import Scratch

MIB = 1 << 20


def test_what_was_reserved_is_on_the_disk() -> None:
    with closing(Scratch().new_file()) as file:
        file.reserve(3 * MIB)
        file.reserve(MIB)
        assert file.seek(0, 2) == 3 * MIB


def test_a_disk_without_room_is_refused_before_anything_is_written() -> None:
    folder = tempfile.gettempdir()
    more = shutil.disk_usage(folder).free + (1 << 40)
    with (
        closing(Scratch().new_file()) as file,
        pytest.raises(
            StorageUnavailable,
            match=rf"{re.escape(folder)} has \d+ bytes free.*{more} more.*TMPDIR",
        ),
    ):
        file.reserve(more)


def test_files_share_the_limit_and_give_their_room_back() -> None:
    scratch = Scratch(limit=2 * MIB)
    with closing(scratch.new_file()) as one:
        one.reserve(MIB)
        with closing(scratch.new_file()) as other:
            with pytest.raises(StorageUnavailable, match="CMCL_SCRATCH_BYTES permits 2097152"):
                other.reserve(MIB + 1)
            other.reserve(MIB)
    with closing(scratch.new_file()) as after:
        after.reserve(2 * MIB)
