"""The priority of processes beside those that answer queries."""

import os
import subprocess
import sys

_PROGRAM = """
import os
from workers.sandbox.limits import give_way_to_queries
for _ in range(2):
    give_way_to_queries()
    print(os.nice(0))
"""


def test_a_process_gives_way_once_however_often_it_is_asked() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == [max(os.nice(0), 10)] * 2
