"""The Serve application: a RayService imports `build`, `__main__` calls `deploy`."""

import time
from typing import Any

import httpx
from ray import serve
from ray.exceptions import RayActorError

from workers.serve.deployment import EMBEDDER
from workers.serve.encoders.deployment import encoder_applications
from workers.serve.ray_adapters import REPLICA, at_most_per_node
from workers.serve.settings import ServeArgs, ServeSettings
from workers.serve.withdrawal import APPLICATION

_ANSWER_SECONDS = 10.0
# Serve itself waits 60 s for its proxy, and its controller continues after that.
_STARTS, _PROXY_SECONDS = 5, 60.0
# Room for requests that are refused, and for probes, which are not counted.
_TIMES_OURS = 2


def build(args: ServeSettings | dict[str, object]) -> serve.Application:
    """Build the application for these settings, or arguments. Raises pydantic.ValidationError."""
    if not isinstance(args, ServeSettings):
        args = ServeSettings.model_validate(ServeArgs.model_validate(args).model_dump())
    deployment = EMBEDDER.options(
        num_replicas=args.replicas,
        ray_actor_options=_booked(args),
        # Requests that wait in Ray have neither a share by key nor a deadline. So Ray admits more than a
        # replica does, and the replica decides; of a burst beyond that some wait for a moment, and the
        # rest is refused.
        max_ongoing_requests=_TIMES_OURS * args.max_requests_in_flight,
        max_queued_requests=_TIMES_OURS * args.max_requests_in_flight,
        # A replica that is replaced ends when all its requests are answered. By default Ray would end
        # them after 20 s.
        graceful_shutdown_timeout_s=args.body_seconds + args.queue_seconds,
    )
    own_nodes = args.replicas_per_node is not None
    return deployment.bind(
        args, encoder_applications(args.encoders, args.store, own_nodes=own_nodes)
    )


def _booked(args: ServeArgs) -> dict[str, Any]:
    if args.replicas_per_node is None:
        return {"num_cpus": args.num_cpus}
    return at_most_per_node(REPLICA, args.replicas_per_node, args.identity)


def deploy(args: ServeSettings, host: str, port: int) -> str:
    """Deploy the application at `host:port` and return its address. Prints its phases.

    If it runs already with the same arguments and release it is left alone: deploying would restart its
    replicas. Raises RuntimeError if a part does not start, or if Serve was started
    before with another address: its HTTP options cannot be changed while it runs. Raises TimeoutError or
    RayActorError if Serve's proxy is not ready in several minutes.
    """
    for number in range(2, _STARTS + 1):
        began = time.monotonic()
        try:
            return _deploy(args, host, port)
        except (TimeoutError, RayActorError):  # The proxy was not ready in time, or was replaced.
            print(
                f"starting: Ray Serve's proxy was not ready after {time.monotonic() - began:.0f} s. "
                f"Trying again ({number} of {_STARTS})",
                flush=True,
            )
    return _deploy(args, host, port)


def _deploy(args: ServeSettings, host: str, port: int) -> str:
    began = time.monotonic()
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    _wait_for_proxy()
    print(f"starting: Ray Serve is ready after {time.monotonic() - began:.0f} s", flush=True)
    # Compared, not bound: a server on all interfaces answers on loopback.
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
    if not _is_running() or _identity_at(address) != args.identity:
        encoders = "".join(f", encoder {each.name}" for each in args.encoders)
        print(f"starting: replicas of the endpoint{encoders}", flush=True)
        _run(build(args))
    if _identity_at(address) != args.identity:
        raise RuntimeError(f"the application runs, but another one answers at {address}")
    return address


def _wait_for_proxy() -> None:
    """Until it answers. `serve.start` does not wait where Serve has been started before. Raises TimeoutError."""
    deadline = time.monotonic() + _PROXY_SECONDS
    while not ((proxies := serve.status().proxies) and set(proxies.values()) == {"HEALTHY"}):
        if time.monotonic() > deadline:
            raise TimeoutError(f"proxies: {proxies}")
        time.sleep(0.2)


def _run(application: serve.Application) -> None:
    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{_failures()}") from error


def _failures() -> str:
    """Return why deployments did not start; Serve's own error only names them."""
    parts = serve.status().applications[APPLICATION].deployments
    return "\n".join(f"{name}: {part.message}" for name, part in parts.items() if part.message)


def _is_running() -> bool:
    application = serve.status().applications.get(APPLICATION)
    return application is not None and application.status == "RUNNING"


def _identity_at(address: str) -> object:
    """Asked over HTTP: a driver's Serve handles fail under RAY_SERVE_THROUGHPUT_OPTIMIZED=1."""
    try:
        # No proxy from the environment: the address is on this machine.
        with httpx.Client(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            body: dict[str, object] = client.get(f"{address}/healthz").raise_for_status().json()
        return body.get("application")
    except (httpx.HTTPError, ValueError) as error:
        raise RuntimeError(
            f"the application runs, but {address} does not answer as expected ({error}). If Serve "
            "was started on this cluster before with another address, use that one, or run "
            "`serve shutdown`"
        ) from error
