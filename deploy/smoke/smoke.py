"""Smoke test of a deployment: posts the two datasets of depth and text of examples/stream to a model with the policy
preserve, waits for their versions, of which the second is trained by all ranks under the projected gradient, embeds the
second one's held-out rows, compares their recall with the figure from training, and cleans up.

`python smoke.py --service URL --embeddings URL --stream FOLDER`, with a key in CMCL_KEY that may read,
write, train, embed and delete models. Uses the public client. Exit status 1: the test failed.

Shapes: N held-out rows, I and E widths of features and embeddings, K = 10 best rows.
"""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cmcl import Client, CmclError
from cmcl.contract.model import ModelSpec

# Of one pair: the first is solved, the second trained.
_DATASETS = (1, 4)
_WIDTH = 64
_BEST = 10
# float32 sums in another order may swap two rows with nearly equal scores.
_TOLERANCE = 0.02
_ANSWERS_SECONDS = 120.0

Matrix = NDArray[np.float32]


class WrongResult(Exception):
    """All parts responded, but a result is wrong."""


@dataclass(frozen=True)
class Example:
    """Two datasets of one pair of the example stream: the rows to train on, and the second one's held-out rows."""

    pair: tuple[str, str]
    trains: tuple[Path, ...]
    test: Path
    widths: dict[str, int]

    @classmethod
    def read(cls, stream: Path) -> "Example":
        """Read it. Raises FileNotFoundError if there is no stream."""
        document = json.loads((stream / "stream.json").read_text())
        entries = [document["datasets"][number] for number in _DATASETS]
        pair = (entries[-1]["pair"]["first"], entries[-1]["pair"]["second"])
        widths = {modality: document["modalities"][modality] for modality in pair}
        trains = tuple(stream / entry["train"]["file"] for entry in entries)
        return cls(pair, trains, stream / entries[-1]["evaluation"]["file"], widths)

    def held_out(self) -> list[Matrix]:
        """Return the features of both sides, N × I."""
        table = pq.read_table(self.test, columns=["feature_a", "feature_b"])
        columns = (table.column(name).to_pylist() for name in table.column_names)
        return [np.asarray(rows, dtype=np.float32) for rows in columns]


def check(client: Client, example: Example, model: str, seconds: float) -> dict[str, Any]:
    """Train, embed and compare. Raises CmclError or WrongResult."""
    started = time.monotonic()
    spec = ModelSpec(width=_WIDTH, modalities=example.widths, policy="preserve")
    client.create_model(model, spec)
    for number, train in enumerate(example.trains, start=1):
        accepted = client.add_dataset(
            *(model, f"smoke-{number}", example.pair, [train]),
            evaluation_shards=[example.test] if number == len(example.trains) else [],
            upload="always",
        )
        job = client.watch(accepted.job.id, lambda now: print(now.state), timeout=seconds)
        if job.version is None:
            raise WrongResult(f"{job.id} ended {job.state}: {job.message}")
        version = client.version(model, job.version)
    learned = version.evaluation_matrix[-1]
    measured = learned.recall[accepted.dataset.id].at_10
    features = example.held_out()
    wait_until_served(client, f"{model}@{version.version}", example.pair[0], features[0][:1])
    sides = [
        embed(client, f"{model}@{version.version}", modality, rows_NI)
        for modality, rows_NI in zip(example.pair, features, strict=True)
    ]
    answered = recall_at_10(features, sides)
    if abs(answered - measured) > _TOLERANCE:
        raise WrongResult(f"recall@10 of the embeddings is {answered:.3f}, not {measured:.3f}")
    seconds_taken = round(time.monotonic() - started, 1)
    return {
        "version": version.version,
        "ranks": version.report.ranks,
        "recall_at_10": answered,
        "seconds": seconds_taken,
    }


def wait_until_served(client: Client, model: str, modality: str, row_1I: Matrix) -> None:
    """Wait until the endpoint serves the version. It polls the store once a second, and gets announcements."""
    deadline = time.monotonic() + _ANSWERS_SECONDS
    while True:
        try:
            client.embed(model, modality, row_1I.tolist())
            return
        except CmclError as error:
            if error.status not in (401, 403, 404, 503) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def embed(client: Client, model: str, modality: str, rows_NI: Matrix) -> Matrix:
    """Return unit embeddings, N × E."""
    return np.asarray(client.embed(model, modality, rows_NI.tolist()).vectors, dtype=np.float32)


def recall_at_10(features: Sequence[Matrix], sides: Sequence[Matrix]) -> float:
    """Return recall@K, averaged over both directions. Rows with the partner's features count as hits."""
    keys = [np.unique(rows_NI, axis=0, return_inverse=True)[1].ravel() for rows_NI in features]
    first_NE, second_NE = sides
    ways = (_best(first_NE, second_NE), _best(second_NE, first_NE))
    return float(np.concatenate([_hits(best_NK, keys) for best_NK in ways]).mean())


def _best(queries_NE: Matrix, gallery_NE: Matrix) -> NDArray[np.intp]:
    return np.argsort(-(queries_NE @ gallery_NE.T), axis=1, kind="stable")[:, :_BEST]


def _hits(best_NK: NDArray[np.intp], keys: Sequence[NDArray[np.intp]]) -> NDArray[np.bool_]:
    first_N, second_N = keys
    same_NK = (first_N[best_NK] == first_N[:, None]) | (second_N[best_NK] == second_N[:, None])
    return np.asarray(same_NK.any(axis=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the test and return the exit status. The last line is one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", required=True, help="address of the control plane")
    parser.add_argument("--embeddings", required=True, help="address of the endpoint")
    parser.add_argument("--stream", required=True, type=Path, help="the folder examples/stream")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the version")
    options = parser.parse_args(arguments)
    model = f"smoke-{secrets.token_hex(4)}"
    with Client(options.service, options.embeddings) as client:
        try:
            result = check(client, Example.read(options.stream), model, options.timeout)
        except (CmclError, WrongResult) as error:
            print(f"smoke: {error}", file=sys.stderr)
            return 1
        finally:
            _remove(client, model)
    print(json.dumps(result))
    return 0


def _remove(client: Client, model: str) -> None:
    """Delete the model, without masking an earlier error."""
    try:
        client.delete_model(model)
    except CmclError as error:
        print(f"smoke: {model} is left over: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
