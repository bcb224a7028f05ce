"""What really travels: the kernel's own count, in a network of which nobody else is part."""

import ctypes
import os
import subprocess
from pathlib import Path

_NEW_NETWORK = 0x40000000
_COUNTERS = Path("/proc/net/dev")


def enter_own_network() -> bool:
    """Leave all networks but a loopback of our own, for this process and its children.

    False where that is not permitted (it takes root): then there is nothing to count.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) != 0:
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    # Gloo would look for the address of the host's name, which is gone.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    return True


def bytes_on_loopback() -> int:
    """Received so far, headers included."""
    lines = _COUNTERS.read_text().splitlines()
    counters = next(line for line in lines if line.strip().startswith("lo:"))
    return int(counters.partition(":")[2].split()[0])
