"""Freed memory stays in a process that asks for it."""

import json
import platform
import subprocess
import sys

import pytest

# Blocks of the size of a pass, which glibc would return to the system each time.
PASSES = """
import json, resource, sys
import numpy as np
from cmcl.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(48 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
keep_freed_memory()
np.ones(48 << 20, np.uint8)
print(json.dumps([returned, faults()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_process_that_keeps_freed_memory_gets_no_new_pages_for_the_next_pass() -> None:
    output = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, check=True).stdout
    returned, kept = json.loads(output)
    assert returned >= 20
    assert kept < returned / 10
