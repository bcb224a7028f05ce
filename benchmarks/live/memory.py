"""Memory of all processes of a local stack, by what they are.

A page that several processes share counts in parts (PSS), so the sum is what the stack takes of the machine.
"""

import os
import re
from collections import defaultdict
from contextlib import suppress
from typing import TypedDict

import psutil

from benchmarks.processes import family, title
from cmcl.stack import LocalStack

_LONGEST_NAME = 60
_MODULE = re.compile(r"-m (\S+)")


class Processes(TypedDict):
    """Processes of one kind; `mib`: their proportional set size together."""

    processes: int
    mib: float


def memory_of(stack: LocalStack) -> dict[str, Processes]:
    """Return the memory of the stack's processes by their names, the largest first. This process started the stack."""
    # HAProxy is detached from its parent.
    proxies = [
        each
        for each in psutil.process_iter(["name"])
        if each.info["name"] == "haproxy" and str(stack.proxy_folder) in title(each)
    ]
    found: dict[str, Processes] = defaultdict(lambda: Processes(processes=0, mib=0.0))
    for each in [*family(os.getpid()), *proxies]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            mib, kind = each.memory_full_info().pss / 2**20, found[_kind(title(each))]
            kind["processes"] += 1
            kind["mib"] = round(kind["mib"] + mib, 1)
    return dict(sorted(found.items(), key=lambda item: -item[1]["mib"]))


def _kind(words: str) -> str:
    """Return what a process is, from its command line: `ray::IDLE`, `python -m service`, `gcs_server`."""
    if words.startswith("ray::"):
        # Ray pads the title to the length of the command line that it replaces.
        return words[:_LONGEST_NAME].rstrip()
    if module := _MODULE.search(words):
        return f"python -m {module[1]}"
    program, *arguments = words.split() or [""]
    script = next((each for each in arguments if each.endswith(".py")), program)
    return script.rpartition("/")[2][:_LONGEST_NAME]
