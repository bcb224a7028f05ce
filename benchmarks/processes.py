"""Other processes of this machine, which may end while they are looked at."""

import psutil


def family(number: int) -> list[psutil.Process]:
    """All that a process started, and what those started; none once it has gone."""
    try:
        found: list[psutil.Process] = psutil.Process(number).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def title(process: psutil.Process) -> str:
    """Its command line, as Ray writes it; empty once it has gone."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
