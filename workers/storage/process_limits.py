"""Bounds of a process that reads a user's file: memory, processor time, and the life of its parent."""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def bound(memory: int, seconds: int) -> None:
    """At most so many bytes and so many seconds of processor time; no core file.

    What counts as memory is what the process may write to: a file that is mapped to be read is free.
    Bounds that stand already, such as those of the process that started this one, are not widened.
    """
    limits = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lower, lower))


def end_with(parent: int) -> None:
    """Be killed as soon as the process `parent`, or its thread that started this one, is gone.

    Nothing happens where the system cannot do it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        # It went before this was asked for.
        os.kill(os.getpid(), signal.SIGKILL)
