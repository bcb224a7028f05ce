"""A temporary Prometheus on loopback, with its data in one folder."""

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_READY_SECONDS = 30.0


class PrometheusError(Exception):
    """Prometheus did not start, or rejected a query. The message is Prometheus'."""


@dataclass(frozen=True)
class Target:
    """A scrape target with its job name."""

    job: str
    address: str


class Prometheus:
    """`with Prometheus(program, folder, port, targets) as it: it.ask("up")`.

    `rules`: a file of alert rules, evaluated every second. `scrape_seconds`: how often targets are scraped.
    """

    def __init__(
        self,
        program: Path,
        folder: Path,
        port: int,
        targets: Sequence[Target],
        rules: Path | None = None,
        scrape_seconds: int = 1,
    ) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._address = f"http://127.0.0.1:{port}"
        self._scrape_seconds = scrape_seconds
        self._command = [
            *(str(program), f"--config.file={self._written(targets, rules)}"),
            *(f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"),
        ]

    def __enter__(self) -> Self:
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        self._wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the series of an expression at an instant, by default now. Raises PrometheusError.

        Instant queries exclude series that have disappeared, which a range query would include.
        """
        instant = {} if at is None else {"time": at}
        found = self._get("query", {"query": expression, **instant})
        series: list[dict[str, Any]] = found["result"]
        return series

    def alerts(self) -> dict[str, str]:
        """Return active alerts by name: `pending` or `firing`. Raises PrometheusError."""
        found = self._get("alerts", {})["alerts"]
        return {each["labels"]["alertname"]: each["state"] for each in found}

    def _get(self, path: str, parameters: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.get(f"{self._address}/api/v1/{path}", params=parameters, timeout=30).json()
        if answer["status"] != "success":
            raise PrometheusError(answer["error"])
        data: dict[str, Any] = answer["data"]
        return data

    def _written(self, targets: Sequence[Target], rules: Path | None) -> Path:
        """Write the configuration as JSON, which is valid YAML."""
        scraped = [
            {"job_name": target.job, "static_configs": [{"targets": [target.address]}]}
            for target in targets
        ]
        path = self._folder / "prometheus.yaml"
        every = {
            "scrape_interval": f"{self._scrape_seconds}s",
            "scrape_timeout": f"{self._scrape_seconds}s",
            "evaluation_interval": "1s",
        }
        files = [] if rules is None else [str(rules)]
        path.write_text(
            json.dumps({"global": every, "rule_files": files, "scrape_configs": scraped})
        )
        return path

    def _wait(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(f"{self._address}/-/ready", timeout=1).is_success:
                    return
            except httpx.HTTPError:
                pass  # Not listening yet: that is what we wait for.
            time.sleep(0.1)
        log = self._folder / "prometheus.log"
        self._process.kill()
        raise PrometheusError(f"Prometheus did not start: {log.read_text().strip()[-1000:]}")
