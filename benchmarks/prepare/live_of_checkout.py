"""Times from the POST of small datasets of features until the endpoint answers with their versions.

`python -P live_of_checkout.py STREAM FOLDER [POLICY]`, with a checkout of cmcl in PYTHONPATH and as the working
directory: it imports only what older checkouts have too. POLICY is that of the models; by default the checkout's. The
last line of stdout is a JSON list with the times of each dataset in seconds: `prepared` (until the attempt is
submitted) and `live`.
"""

import json
import sys
import time
from pathlib import Path

import httpx

from cmcl.client import Client
from cmcl.contract.model import ModelSpec
from cmcl.demo.stream import Stream, read_stream
from cmcl.stack import LocalStack

try:
    from cmcl.stack_host import Ports
except ImportError:  # before 2026-11-29
    from cmcl.ports import Ports  # type: ignore[import-not-found,no-redef]

_TIMEOUT_SECONDS, _LOOK_SECONDS = 300.0, 0.02


def times(stream: Stream, folder: Path, policy: str | None) -> list[dict[str, float]]:
    """Learn the datasets of the stream, after the first one was learned by another model."""
    allowed = (stream.folder.as_uri(),)
    chosen = {} if policy is None else {"policy": policy}
    spec = ModelSpec.model_validate({"modalities": stream.modalities, **chosen})
    stack = LocalStack(folder, Ports.free(), ranks=1, allowed_prefixes=allowed)
    with stack, Client(stack.service_url, stack.embeddings_url) as client:
        for model in ("first", "bench"):
            client.create_model(model, spec)
        # Processes start and import modules.
        _one(client, stack, stream, "first", 0)
        return [
            _one(client, stack, stream, "bench", number) for number in range(len(stream.datasets))
        ]


def _one(
    client: Client, stack: LocalStack, stream: Stream, model: str, number: int
) -> dict[str, float]:
    dataset = stream.datasets[number]
    modality = dataset.pair.first
    query = {
        "model": model,
        "modality": modality,
        "input": stream.probe_rows(1)[modality],
    }
    posted = time.time()
    accepted = client.add_dataset(model, dataset.name, dataset.pair, dataset.shards)
    spec = stack.folder / "store" / "runs" / str(accepted["job"]["id"]) / "a1" / "spec.json"
    deadline = posted + _TIMEOUT_SECONDS
    while time.time() < deadline:
        response = httpx.post(f"{stack.embeddings_url}/v1/embeddings", json=query, timeout=30)
        if response.headers.get("x-model-version") == str(number + 1):
            live = time.time()
            return {"prepared": spec.stat().st_mtime - posted, "live": live - posted}
        time.sleep(_LOOK_SECONDS)
    raise TimeoutError(f"{dataset.name} was not live after {_TIMEOUT_SECONDS:g} s")


if __name__ == "__main__":
    source, target, *chosen = sys.argv[1:]
    print(json.dumps(times(read_stream(Path(source)), Path(target), next(iter(chosen), None))))
