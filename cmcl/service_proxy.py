"""`python -m cmcl.service_proxy`: HAProxy before the control plane, with the configuration `service_proxy.cfg`.

Settings: CMCL_PROXY_LISTEN, the address for clients (`127.0.0.1:8000`, or `:8000` for all interfaces);
CMCL_PROXY_SERVICE, that of the service; CMCL_PROXY_TRUSTED, addresses and networks of proxies before this one,
separated by commas. They may have all connections, and what they say of their clients' addresses is believed.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from cmcl.haproxy import ProxyError, find_haproxy, trusted_proxies

CONFIGURATION = Path(__file__).with_suffix(".cfg")
_TRUSTED = "CMCL_PROXY_TRUSTED"
_ADDRESSES = ("CMCL_PROXY_LISTEN", "CMCL_PROXY_SERVICE")


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the configuration. Raises ProxyError for a missing or invalid one."""
    for name in _ADDRESSES:
        if not environment.get(name):
            raise ProxyError(
                f"{name} is missing: set it to an address and port such as 127.0.0.1:8000"
            )
    trusted = trusted_proxies(environment, _TRUSTED)
    return {**{name: environment[name] for name in _ADDRESSES}, _TRUSTED: " ".join(trusted)}


def main() -> NoReturn:
    """Become HAProxy."""
    try:
        environment, program = {**os.environ, **variables(os.environ)}, find_haproxy()
    except (ProxyError, OSError) as error:
        sys.exit(f"cmcl.service_proxy: {error}")
    os.execve(program, [program, "-f", str(CONFIGURATION)], environment)  # noqa: S606 - keep the process id


if __name__ == "__main__":
    main()
