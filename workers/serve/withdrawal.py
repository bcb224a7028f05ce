"""`python -m workers.serve.withdrawal`: withdraw the application at SIGTERM or SIGINT.

`python -m workers.serve` becomes this process once the endpoint answers. Deploying imports torch, which takes 400 MB, and
waiting needs none of it.
"""

import signal
import sys

ENDING = (signal.SIGTERM, signal.SIGINT)
APPLICATION = "embeddings"


def main() -> int:
    """Wait for a signal, which the process before may have received, and withdraw. The exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    signal.sigwait(ENDING)
    import ray

    ray.init(address="auto", log_to_driver=False)
    withdraw()
    return 0


def withdraw() -> None:
    """Delete the application, and stop Serve if no other application runs."""
    from ray import serve

    from workers.serve.ray_adapters import close_channel

    serve.delete(APPLICATION)
    # After the replicas: a living one would create it again.
    close_channel()
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
