"""Messages of the trial run of the images when a part ends."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from deploy.images.trial import Part, TrialFailed

CLOSED = "http://127.0.0.1:1/readyz"


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[list[Part]]:
    """Ray, which has ended, and the endpoint, which waits for Ray."""
    programs = {
        "ray": "print('no room for the object store'); raise SystemExit(1)",
        "embeddings": "import time; time.sleep(3600)",
    }
    parts: list[Part] = []
    with ExitStack() as stack:
        for name, program in programs.items():
            log = tmp_path / f"{name}.log"
            command = [sys.executable, "-c", program]
            with log.open("wb") as output:
                process = stack.enter_context(subprocess.Popen(command, stdout=output))
            stack.callback(process.kill)
            parts.append(Part(name, process, log, parts))
        yield parts


def test_the_end_of_a_part_is_reported_while_another_waits_for_it(parts: list[Part]) -> None:
    _, embeddings = parts
    with pytest.raises(TrialFailed) as raised:
        embeddings.wait_for(CLOSED)
    assert str(raised.value) == (
        "ray ended while embeddings was starting:\nno room for the object store"
    )
