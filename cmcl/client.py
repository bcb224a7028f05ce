"""A typed client for both HTTP sides: the control plane and the embeddings endpoint."""

import base64
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from workers.contract.dataset import ShardRef
from workers.contract.modality import ModalityPair
from workers.contract.model import ModelSpec
from workers.contract.version import VersionManifest

DEFAULT_SERVICE_URL = "http://127.0.0.1:8000"
DEFAULT_EMBEDDINGS_URL = "http://127.0.0.1:8001"
FINAL_STATES = frozenset({"published", "rejected", "failed", "cancelled"})

Json = dict[str, Any]


class CmclError(Exception):
    """The server refused, or did not answer. `status` is 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors, and the one version that gave all of them."""

    vectors: list[list[float]]
    version: int


class Client:
    """Synchronous client. Use it as a context manager, or call `close`.

    `service_url` is the control plane, `embeddings_url` the endpoint that answers queries.
    Every method raises CmclError with the server's own words.
    """

    def __init__(
        self,
        service_url: str = DEFAULT_SERVICE_URL,
        embeddings_url: str = DEFAULT_EMBEDDINGS_URL,
        timeout: float = 30.0,
    ) -> None:
        self._service = httpx.Client(base_url=service_url, timeout=timeout)
        self._embeddings = httpx.Client(base_url=embeddings_url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._service.close()
        self._embeddings.close()

    def create_model(self, name: str, spec: ModelSpec) -> Json:
        """Create a model; the same name with the same spec answers the same model."""
        body = {"name": name, **spec.model_dump(mode="json")}
        return self._ask(self._service, "POST", "/v1/models", json=body)

    def models(self) -> list[Json]:
        """All models."""
        return list(self._items("/v1/models", {}))

    def add_dataset(
        self,
        model: str,
        name: str,
        pair: ModalityPair,
        shards: Sequence[ShardRef],
        evaluation_shards: Sequence[ShardRef] = (),
    ) -> Json:
        """Post a dataset; answers `{"dataset": ..., "job": ...}`."""
        body = {
            "model": model,
            "name": name,
            "pair": pair.model_dump(),
            "shards": [shard.model_dump(exclude_none=True) for shard in shards],
            "evaluation_shards": [
                shard.model_dump(exclude_none=True) for shard in evaluation_shards
            ],
        }
        return self._ask(self._service, "POST", "/v1/datasets", json=body)

    def job(self, job: str) -> Json:
        """One job with its progress."""
        return self._ask(self._service, "GET", f"/v1/jobs/{_segment(job)}")

    def jobs(self, model: str) -> list[Json]:
        """All jobs of a model."""
        return list(self._items("/v1/jobs", {"model": model}))

    def cancel(self, job: str) -> Json:
        """Ask for a job to be cancelled."""
        return self._ask(self._service, "POST", f"/v1/jobs/{_segment(job)}/cancel")

    def watch(
        self,
        job: str,
        on_change: Callable[[Json], None] = lambda _: None,
        timeout: float = 3600.0,
        poll_seconds: float = 0.2,
    ) -> Json:
        """Follow a job to its end; raises CmclError when `timeout` seconds are over.

        A control plane that restarts meanwhile is waited for: the job goes on without it.
        """
        deadline = time.monotonic() + timeout
        now: Json | None = self.job(job)
        while time.monotonic() < deadline:
            if now is not None:
                on_change(now)
                if now["state"] in FINAL_STATES:
                    return now
            time.sleep(poll_seconds)
            now = self._job_unless_away(job)
        raise CmclError(f"job {job} did not end within {timeout:g} seconds")

    def _job_unless_away(self, job: str) -> Json | None:
        try:
            return self.job(job)
        except CmclError as error:
            if error.status:
                raise
            return None

    def versions(self, model: str) -> list[Json]:
        """All versions of a model."""
        return list(self._items(f"/v1/models/{_segment(model)}/versions", {}))

    def version(self, model: str, number: int) -> VersionManifest:
        """The whole manifest of a version: certificate, evaluation, lineage."""
        path = f"/v1/models/{_segment(model)}/versions/{number}"
        answer = self._ask(self._service, "GET", path)
        return VersionManifest.model_validate(answer["manifest"])

    def promote(self, model: str, version: int, reason: str = "") -> Json:
        """Make a version the live one: promote or roll back."""
        body: Json = {"version": version, **({"reason": reason} if reason else {})}
        return self._ask(self._service, "PUT", f"/v1/models/{_segment(model)}/live", json=body)

    def embed(self, model: str, modality: str, features: Sequence[Sequence[float]]) -> Embeddings:
        """Embed features with the live version, or with `name@version`."""
        body = {
            "model": model,
            "modality": modality,
            "input": [list(row) for row in features],
            "encoding_format": "base64",
        }
        answer = self._ask(self._embeddings, "POST", "/v1/embeddings", json=body)
        version = int(answer["model"].rpartition("@")[2])
        return Embeddings([_floats(item["embedding"]) for item in answer["data"]], version)

    def _items(self, path: str, query: dict[str, str]) -> Iterator[Json]:
        while True:
            page = self._ask(self._service, "GET", path, params=query)
            yield from page["items"]
            if not page["next_cursor"]:
                return
            query = {**query, "cursor": page["next_cursor"]}

    def _ask(self, client: httpx.Client, method: str, path: str, **options: Any) -> Json:
        try:
            response = client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise CmclError(f"{client.base_url} does not answer: {error}") from error
        except ValueError as error:
            # NaN and infinity, which JSON does not have.
            raise CmclError(f"the request cannot be written as JSON: {error}") from error
        answer = _json_object(response)
        if answer is None or not response.is_success:
            raise CmclError(_explain(response), response.status_code)
        return answer


def _segment(name: str) -> str:
    """A name as one part of a path: what is odd about it is for the server to say."""
    return quote(name, safe="")


def _json_object(response: httpx.Response) -> Json | None:
    """None where it is something else, such as a proxy's page."""
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _explain(response: httpx.Response) -> str:
    """The server's own words: problem+json of the service, or the error shape of the endpoint."""
    body = _json_object(response)
    if body is None:
        return f"HTTP {response.status_code}: {response.text[:200]}"
    if isinstance(body.get("error"), dict):
        return str(body["error"]["message"])
    parts = [str(body.get("detail") or body.get("title") or f"HTTP {response.status_code}")]
    for error in body.get("errors", []):
        # The detail often is the message of the only error.
        if error["message"] not in parts[0]:
            parts.append(f"{error['field']}: {error['message']}")
    return "; ".join(parts)


def _floats(encoded: str) -> list[float]:
    data = base64.b64decode(encoded)
    return list(struct.unpack(f"<{len(data) // 4}f", data))
