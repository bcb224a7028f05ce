"""How Ray Serve runs behind HAProxy: what the local stack and the chart have in common.

An embedding is a pure function of the request, so a request whose replica dies before it answers is
sent to another one. HAProxy can do that with what it holds in memory as a whole: it waits for the body
(bodies come in pieces on any real network), and keeps it up to the size of its buffer. What is
larger fails once and is the client's to send again, as `cmcl.Client` does. So is an answer that was cut
after a part of it had come; replicas write all but large ones at once (workers/serve/http/one_write.py).

A write that is sent again must not be done twice. Every request has an id of HAProxy's, the same in
each attempt, by which the endpoint knows a write that it has done (docs/search.md).

HAProxy's own patience is the endpoint's: as long for a body to come and for a piece of an answer to
leave, and for an answer longer than any request may ask for.
"""

from pathlib import Path

from cmcl.ports import Ports

# A row of 1024 numbers is 20 KiB of JSON or 4 KiB of raw floats. A request under way takes up to
# three buffers: 48 MiB for 64 of them.
BUFFER_KIB = 256
# As `body_seconds` of the endpoint, and more than the longest `x-request-timeout-ms` and it together.
BODY_SECONDS = 30
ANSWER_SECONDS = 660
# What Ray has no setting for: lines of `defaults` in HAProxy's configuration.
_LINES = (
    "option http-buffer-request",
    f"timeout http-request {BODY_SECONDS}s",
    "unique-id-format %[uuid]",
    "unique-id-header x-unique-id",
)

SERVING = {
    # Eight times the requests of Serve's own proxy on this path (docs/log.md).
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_KIB << 10),
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(BODY_SECONDS),
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(ANSWER_SECONDS),
    # The value is written into HAProxy's configuration as it stands, at the end of the line
    # `retry-on` of `defaults`.
    "RAY_SERVE_HAPROXY_RETRY_ON": "\n    ".join(
        ("conn-failure empty-response junk-response", *_LINES)
    ),
    # Three failed looks and HAProxy is started anew; by default they are ten seconds apart.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}

# What Ray 2.60 does by itself; to measure beside.
RAYS_OWN = {
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "16384",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "3600",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "10",
}


def places(ports: Ports, folder: Path) -> dict[str, str]:
    """HAProxy's ports and files on this machine: Ray's defaults are fixed, so two stacks would collide."""
    return {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports.proxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports.proxy_stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.proxy_fallback),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
    }
