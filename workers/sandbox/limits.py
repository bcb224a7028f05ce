"""Limits of a process that reads a user's file: memory, CPU time, priority, and the lifetime of its parent."""

import ctypes
import math
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NICENESS = 10


def bound_memory(memory: int) -> None:
    """Limit memory (bytes), and disable core files.

    Only writable memory counts: files that are mapped for reading are free. Existing limits, such as
    those of the parent process, are not raised.
    """
    for limit, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(limit)
        lower = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (lower, lower))


def bound_cpu(seconds: float) -> None:
    """Limit the CPU time from now on. The process can renew this limit."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def give_way_to_queries() -> None:
    """Lower the priority of this thread and of what it starts. Once for each process, before it starts threads.

    On the same machine, processes that answer requests then get the CPU first: their clients are waiting.
    """
    os.nice(max(0, _NICENESS - os.nice(0)))


def end_with(parent: int) -> None:
    """Have the kernel kill this process when the process `parent`, or its thread, ends.

    Does nothing on systems other than Linux.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        # The parent ended before the call.
        os.kill(os.getpid(), signal.SIGKILL)
