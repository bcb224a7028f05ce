"""`python -m workers.serve --store URI`: serve embeddings on the Ray cluster that is running.

Once the endpoint answers, the same process becomes `python -m workers.serve --withdraw`, which waits for SIGTERM or SIGINT
and withdraws the application. Deploying imports torch, which takes 400 MB; waiting needs none of it, so modules are
imported where they are used.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

_ENDING = (signal.SIGTERM, signal.SIGINT)
_WITHDRAW = "--withdraw"


def main(argv: list[str]) -> int:
    """Deploy. The exit code: 0 once the endpoint answers."""
    import ray
    from ray.exceptions import RayActorError

    from cmcl.contract.encoder import parse_encoder
    from cmcl.contract.errors import InvalidUri
    from cmcl.storage.uris import open_store
    from workers.serve.app import deploy
    from workers.serve.settings import ServeSettings

    options = _options(argv)
    try:
        args = ServeSettings(
            store=options.store,
            replicas=options.replicas,
            num_cpus=options.num_cpus,
            access_public_key=options.access_public_key and options.access_public_key.read_text(),
            encoders=tuple(parse_encoder(text) for text in options.encoder),
        )
        open_store(args.store)
    except (ValueError, InvalidUri, OSError) as error:  # pydantic's are ValueErrors
        print(f"workers.serve: {error}", file=sys.stderr)
        return 2
    # A signal waits until the endpoint is deployed, and for the process that this one becomes.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    ray.init(address="auto", log_to_driver=False)
    try:
        address = deploy(args, options.host, options.port)
    except (RuntimeError, TimeoutError, RayActorError) as error:
        print(f"workers.serve: {error}", file=sys.stderr)
        return 1
    print(f"embeddings: {address} serves {args.store} with {args.replicas} replica(s)", flush=True)
    ray.shutdown()
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers.serve", description=__doc__)
    parser.add_argument("--store", required=True, help="root of the object storage")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--num-cpus", type=float, default=1, help="Ray CPUs per replica")
    parser.add_argument(
        "--access-public-key",
        type=Path,
        metavar="FILE",
        help="PEM with one or several Ed25519 public keys; requests then need a key",
    )
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=KIND:TAKES:WIDTH[:MODEL]",
        help="encoder for raw items, e.g. words=synthetic:text:384; repeatable. Also JSON with the fields "
        "of docs/settings.md",
    )
    return parser.parse_args(argv)


def withdraw_at_signal() -> int:
    """Wait for a signal, which the process before may have received, and withdraw. The exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    signal.sigwait(_ENDING)
    import ray

    ray.init(address="auto", log_to_driver=False)
    withdraw()
    return 0


def withdraw() -> None:
    """Delete the application, and stop Serve if no other application runs."""
    from ray import serve

    from workers.serve.announcements import close_channel
    from workers.serve.settings import APPLICATION

    serve.delete(APPLICATION)
    # After the replicas: a living one would create it again.
    close_channel()
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    if sys.argv[1:] == [_WITHDRAW]:
        sys.exit(withdraw_at_signal())
    if code := main(sys.argv[1:]):
        sys.exit(code)
    os.execv(sys.executable, [sys.executable, "-m", "workers.serve", _WITHDRAW])  # noqa: S606
