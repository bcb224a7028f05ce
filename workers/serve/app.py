"""The Serve application: a RayService imports `build`, `__main__` calls `deploy`."""

import urllib.error
import urllib.request

from ray import serve

from workers.serve.deployment import EMBEDDER
from workers.serve.settings import ServeArgs

APPLICATION = "embeddings"
_ANSWER_SECONDS = 10.0


def build(args: ServeArgs | dict[str, object]) -> serve.Application:
    """The application for these arguments. Raises pydantic.ValidationError."""
    checked = ServeArgs.model_validate(args)
    deployment = EMBEDDER.options(
        num_replicas=checked.replicas, ray_actor_options={"num_cpus": checked.num_cpus}
    )
    return deployment.bind(checked)


def deploy(args: ServeArgs, host: str, port: int) -> str:
    """Have the application answer under `host:port`, and give its address.

    If it runs already with the same arguments and release it is left alone: deploying would
    restart its replicas. Raises RuntimeError if Serve was started before with another address: its
    HTTP options cannot be changed while it runs.
    """
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    if not _runs_with(args):
        serve.run(build(args), name=APPLICATION, route_prefix="/")
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    _check_answers(address)
    return address


def withdraw() -> None:
    """Delete the application, and stop Serve if nobody else uses it."""
    serve.delete(APPLICATION)
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


def _runs_with(args: ServeArgs) -> bool:
    application = serve.status().applications.get(APPLICATION)
    if application is None or application.status != "RUNNING":
        return False
    running = serve.get_app_handle(APPLICATION).identity.remote().result(timeout_s=_ANSWER_SECONDS)
    return bool(running == args.identity)


def _check_answers(address: str) -> None:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=_ANSWER_SECONDS):
            return
    except (urllib.error.URLError, TimeoutError) as error:
        raise RuntimeError(
            f"the application runs, but {address} does not answer ({error}). If Serve was started "
            "on this cluster before with another address, use that one or run `serve shutdown`"
        ) from error
