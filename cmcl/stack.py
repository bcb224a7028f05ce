"""The whole system on this machine: a Ray head, the embeddings endpoint, and the control plane behind its proxy.

Each part is a child process in its own process group, so that stopping ends exactly what was started here.
`ray stop` would end every Ray on the machine.

Everything is in a folder that other users cannot read: Ray makes its own 0777, with HAProxy's socket in it.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Self

import httpx
from pydantic import TypeAdapter

from cmcl.contract.encoder import EncoderSpec
from cmcl.haproxy import SERVING, places
from cmcl.stack_host import (
    HOST,
    FolderLock,
    OperatorKeys,
    Ports,
    StackError,
    busy,
    end_strays,
    last_line,
    signal_group,
    without_interrupts,
)

# A busy machine imports torch and Ray for minutes. A part that ends is reported at once.
_READY_SECONDS, _STOP_SECONDS = 900.0, 5.0
# Between two lines about a part that is still starting.
_REPORT_SECONDS = 15.0
_RAY_STARTS = 3
_TITLES = {
    "ray": "Ray",
    "service": "the control plane",
    "proxy": "the proxy before the control plane",
    "embeddings": "the endpoint",
    "ranks": "the driver with its training ranks",
}
# A part that another one starts, in whose log errors are.
_STARTED_BY = {"ranks": "service"}
# At its start, a part prints what it does on lines that begin with this (workers/serve).
_PROGRESS = "starting: "
_PRIVATE = 0o700
# Not for Ray, which passes its environment to every replica and attempt.
_OF_SERVICE = {
    *("CMCL_ADMIN_KEY", "CMCL_ENCRYPTION_KEY", "CMCL_METRICS_KEY"),
    "CMCL_SNAPSHOT_SIGNING_KEY",
}
_SECRETS = {*_OF_SERVICE, "CMCL_KEY"}
# Ray puts sockets of up to 85 characters below the temporary folder, and HAProxy some of 75; the system permits 107, and
# HAProxy 97.
_LONGEST_TEMPORARY = 22
# With it, each of some thirty processes would compile Ray's sources at every start.
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_ENCODERS = TypeAdapter(tuple[EncoderSpec, ...])
# For tasks of a moment, such as those of Ray Train, which would otherwise wait for a replica to end.
_SPARE_CPUS = 2

_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    # With intervals of 0.1 s, the stack takes 0.42 of a core at rest, and with these 0.28.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Each check is a task of 4 KB that Ray's head stores, by default 100,000 of them.
    "RAY_task_events_max_num_task_in_gcs": "10000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    # A local machine is not preempted. Saves one process per group of ranks.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # The default of 15 lets Ray's workers starve beside other processes.
    "RAY_worker_niceness": "0",
    # Rank 0 has the threads of the ranks that wait. By default those of OpenMP that wait for one that does not run, because
    # the cores are busy, take its core as well: a decomposition then takes 236 ms in place of 15 (docs/log.md).
    "OMP_WAIT_POLICY": "passive",
    # glibc gives threads heaps of their own, up to eight for each core, and each keeps what was freed: half a GiB of a
    # stack at rest (docs/log.md).
    "MALLOC_ARENA_MAX": "1",
    **SERVING,
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_START_HOOK": "cmcl.stack_host.without_client_server",
    # How long Ray lets its own parts start before it ends or replaces them, by default 5 to 100 s, and how long a driver
    # waits for the raylet, by default 60 s. On two cores beside six busy processes, importing torch and Ray takes longer.
    "RAY_gcs_server_request_timeout_seconds": "180",
    # Once in six starts at load 35, it never did: Ray is then started again.
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "180",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "180",
    # A proxy that has ended is noticed at once all the same.
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}


@dataclass
class LocalStack:
    """A stack with its database, store and logs in one folder. A later start continues with them."""

    folder: Path
    ports: Ports
    ranks: int = 2
    allowed_prefixes: tuple[str, ...] = ()
    extra_environment: dict[str, str] = field(default_factory=dict)
    # For the control plane, preparation and the endpoint.
    encoders: tuple[EncoderSpec, ...] = ()
    # A folder with modules of encoders whose kind is `module:Class`.
    plugins: Path | None = None
    # Whether both endpoints ask for keys; the operator's is made once and stays in the folder.
    keys: bool = False
    # Gets a line for each phase of the start.
    report: Callable[[str], None] = lambda line: None  # noqa: ARG005
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    # Bytes of each log that earlier runs have written.
    _logged_before: dict[str, int] = field(default_factory=dict)
    _spawned_at: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.folder.resolve()
        self._keys = OperatorKeys(self.folder / "keys")
        self._lock: FolderLock | None = None
        self._token = secrets.token_hex(16)
        temporary = tempfile.gettempdir()
        if len(temporary) > _LONGEST_TEMPORARY:
            raise StackError(
                f"the temporary folder {temporary} has a path of {len(temporary)} characters, permitted are "
                f"{_LONGEST_TEMPORARY}, because of sockets in it: set TMPDIR to a shorter one, such as /tmp"
            )
        # Ray may write there until its end. Mode 0700.
        self._sockets = tempfile.TemporaryDirectory(prefix="cmcl-", ignore_cleanup_errors=True)
        self.proxy_folder.mkdir()

    @property
    def service_url(self) -> str:
        return f"http://{HOST}:{self.ports.service}"

    @property
    def page_url(self) -> str:
        """Address of the page, for people."""
        return f"{self.service_url}/ui/"

    @property
    def embeddings_url(self) -> str:
        return f"http://{HOST}:{self.ports.embeddings}"

    @property
    def dashboard_url(self) -> str:
        return f"http://{HOST}:{self.ports.dashboard}"

    @property
    def ray_headers(self) -> dict[str, str]:
        """What a request to the dashboard must carry."""
        return {"Authorization": f"Bearer {self._token}"}

    @property
    def store_uri(self) -> str:
        return (self.folder / "store").as_uri()

    @property
    def operator_key(self) -> str | None:
        """The key that may do everything, once `start` has made it; None without `keys`."""
        return self._keys.operator if self.keys else None

    @property
    def _driver_ready(self) -> Path:
        """The object that the driver on the cluster writes when it is warm (cmcl/storage/layout.py)."""
        return self.folder / "store" / "driver.json"

    @property
    def proxy_folder(self) -> Path:
        """Where Serve writes what it tells HAProxy, in a folder for each node."""
        return Path(self._sockets.name) / "p"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all parts, and wait until each answers and is warm. Raises StackError."""
        began = time.monotonic()
        self.prepare_folder()
        self.report("starting Ray and the control plane")
        self.start_ray()
        self.start_service()
        self.wait_for_ray()
        self.report("starting the endpoint")
        self.start_embeddings()
        self.wait_for_service()
        self._wait("embeddings", f"{self.embeddings_url}/readyz")
        self.wait_for_driver()
        self.report(f"started in {time.monotonic() - began:.0f} s")

    def prepare_folder(self) -> None:
        """Make the folder, private to this user, and the keys, and lock it until `stop`.

        Raises StackError if another stack runs in it, or if its keys are not those asked for.
        """
        self.folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = FolderLock(self.folder)
        for name in ("logs", "store", "keys"):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name).chmod(_PRIVATE)
        for path in self.folder.glob("cmcl.db*"):
            path.chmod(0o600)
        self._driver_ready.unlink(missing_ok=True)
        if self.keys:
            self._keys.make()
        elif self._keys.operator:
            raise StackError(f"{self.folder} has keys: add --keys, or choose another --folder")

    def start_ray(self) -> None:
        """A head node with the Jobs API; its CPUs are a count, not a reservation.

        What a killed head left is ended first: its HAProxy has the ports that the next one needs.
        """
        end_strays(self._sockets.name)
        program = Path(sys.executable).parent / "ray"
        self._spawn(
            "ray",
            [
                *(str(program), "start", "--head", "--block", "--disable-usage-stats"),
                # Its own folder: the common one has the address of the Ray that started last, and the jobs of every
                # other Ray on the machine would go there. Ray gives it the mode 0777, so it is in a private one.
                f"--temp-dir={self._sockets.name}/ray",
                *(f"--node-ip-address={HOST}", f"--port={self.ports.ray}"),
                *(f"--dashboard-port={self.ports.dashboard}", "--include-dashboard=true"),
                # Jobs go through it. Its default port is taken where another Ray runs; 0: any free one.
                "--dashboard-agent-listen-port=0",
                f"--num-cpus={self.ray_cpus}",
                "--object-store-memory=200000000",
            ],
        )

    @property
    def ray_cpus(self) -> int:
        """Sum of what all processes reserve at the same time."""
        ranks = 2 * self.ranks  # Those that stay, and those of an attempt that starts its own.
        endpoint = 2  # A replica, and the one that replaces it.
        # Units of two datasets, two of each at a time; each reserves one (`workers/prepare/cluster.py`).
        prepare = 4
        encoders = sum(
            encoder.num_cpus * (2 * encoder.replicas + encoder.actors) for encoder in self.encoders
        )
        return ranks + endpoint + prepare + _SPARE_CPUS + ceil(encoders)

    def start_service(self) -> None:
        """The control plane, and the proxy before it unless that runs already.

        The control plane alone gets the keys in the environment and those of the folder.
        """
        if "proxy" not in self.processes:
            self._spawn(
                "proxy",
                [sys.executable, "-m", "cmcl.service_proxy"],
                CMCL_PROXY_LISTEN=f"{HOST}:{self.ports.service}",
                CMCL_PROXY_SERVICE=f"{HOST}:{self.ports.behind_proxy}",
            )
        access = {name: os.environ[name] for name in _OF_SERVICE if name in os.environ}
        access["CMCL_AUTH"] = "off"
        access["CMCL_ENCODERS"] = _ENCODERS.dump_json(self.encoders).decode()
        if self.keys:
            access |= {
                "CMCL_AUTH": "on",
                "CMCL_ADMIN_KEY": self.operator_key or "",
                "CMCL_SNAPSHOT_SIGNING_KEY": self._keys.signing_key,
            }
        self._spawn("service", [sys.executable, "-m", "service"], **access)

    def start_embeddings(self) -> None:
        """The endpoint that answers queries."""
        self._spawn(
            "embeddings",
            [
                *(sys.executable, "-m", "workers.serve", "--store", self.store_uri),
                *("--host", HOST, "--port", str(self.ports.embeddings)),
                *(f"--encoder={encoder.model_dump_json()}" for encoder in self.encoders),
                *([f"--access-public-key={self._keys.public_key}"] if self.keys else []),
            ],
            # For this part alone: Ray's job client would follow it instead of CMCL_RAY_ADDRESS.
            RAY_ADDRESS=f"{HOST}:{self.ports.ray}",
        )

    def start_driver(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A process that uses this stack's Ray, as Ray starts the driver of a job.

        It is the caller's to wait for; its output goes to the log `driver`.
        """
        self._spawn("driver", command, RAY_ADDRESS=f"{HOST}:{self.ports.ray}")
        return self.processes.pop("driver")

    def wait_for_ray(self) -> None:
        """Until jobs can be submitted; a Ray that ends while it starts is started again. Raises StackError."""
        for number in range(1, _RAY_STARTS + 1):
            try:
                # The dashboard answers before the raylet has registered the node, and also if it never does.
                url = f"{self.dashboard_url}/nodes?view=hostNameList"
                self._wait("ray", url, self.ray_headers, answered=_has_node)
                return
            except StackError as error:
                if self.ended() != ["ray"]:
                    raise
                if number == _RAY_STARTS:
                    told = (str(error), f"it was started {_RAY_STARTS} times", busy())
                    raise StackError("; ".join(filter(None, told))) from error
                seconds = time.monotonic() - self._spawned_at["ray"]
                self.report(
                    f"Ray did not start within {seconds:.0f} s: {busy() or error}. "
                    f"Trying again ({number + 1} of {_RAY_STARTS})"
                )
                self.kill("ray")
                self.start_ray()

    def wait_for_service(self) -> None:
        """Until the control plane is ready. Raises StackError."""
        self._wait("service", f"{self.service_url}/readyz")

    def wait_for_driver(self) -> None:
        """Until the driver has its training ranks, and processes that prepare datasets. Raises StackError.

        The control plane submits it, and submits another one if it ends.
        """
        self._wait_until("ranks", self._driver_ready.is_file)

    def kill(self, name: str) -> None:
        """End one part at once, with its children, as a crash would."""
        process = self.processes.pop(name)
        signal_group(process, signal.SIGKILL)
        process.wait()

    @without_interrupts()
    def stop(self) -> None:
        """End all parts, the last started first."""
        for process in reversed(self.processes.values()):
            signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            # Ray's children outlive a head that ended by itself; the group has them all.
            signal_group(process, signal.SIGKILL)
            process.wait()
        self.processes.clear()
        end_strays(self._sockets.name)
        self._sockets.cleanup()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def ended(self) -> list[str]:
        """Names of parts that are no longer running."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def log(self, name: str) -> Path:
        """Where a part writes what it prints."""
        return self.folder / "logs" / f"{name}.log"

    def last_words(self, name: str, what: str) -> str:
        """What became of a part, with the last line that it printed in this run, or the cause that Ray named."""
        source = _STARTED_BY.get(name, name)
        printed = last_line(self.log(source), self._logged_before.get(source, 0))
        return f"{_TITLES.get(name, name)} {what}: {printed} (log: {self.log(source)})"

    def _environment(self) -> dict[str, str]:
        return {
            **{
                name: value
                for name, value in os.environ.items()
                if name not in {*_SECRETS, _NO_BYTECODE}
            },
            **_RAY,
            **places(self.ports, self.proxy_folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "CMCL_DATABASE_URL": f"sqlite:///{self.folder / 'cmcl.db'}",
            "CMCL_STORE_URI": self.store_uri,
            "CMCL_ALLOWED_PREFIXES": ",".join(self.allowed_prefixes),
            "CMCL_RAY_ADDRESS": self.dashboard_url,
            "CMCL_RANKS": str(self.ranks),
            "CMCL_EMBEDDINGS_URL": self.embeddings_url,
            "CMCL_HOST": HOST,
            "CMCL_PORT": str(self.ports.behind_proxy),
            **self._python_path(),
            **self.extra_environment,
        }

    def _python_path(self) -> dict[str, str]:
        """The folder of plug-ins before what the user has set."""
        if self.plugins is None:
            return {}
        folders = (str(self.plugins.resolve()), os.environ.get("PYTHONPATH"))
        return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}

    def _spawn(self, name: str, command: list[str], **environment: str) -> None:
        with self.log(name).open("ab") as log:
            self._logged_before[name] = log.tell()
            self._spawned_at[name] = time.monotonic()
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**self._environment(), **environment},
                start_new_session=True,
                umask=0o077,
            )

    def _wait(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        answered: Callable[[httpx.Response], bool] = lambda answer: answer.is_success,
    ) -> None:
        """Until a part answers. See `_wait_until`."""
        with httpx.Client(timeout=2, headers=headers) as client:

            def is_ready() -> bool:
                with suppress(httpx.HTTPError):
                    return answered(client.get(url))
                return False

            self._wait_until(name, is_ready)

    def _wait_until(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Until a part is ready; reports what it does, and seconds since it was started. Raises StackError."""
        title, reported_at = _TITLES.get(name, name), time.monotonic()
        source = _STARTED_BY.get(name, name)
        with self.log(source).open("rb") as log:
            log.seek(self._logged_before[source])
            while (seconds := time.monotonic() - self._spawned_at[source]) < _READY_SECONDS:
                for line in log.read().decode(errors="replace").splitlines():
                    if line.startswith(_PROGRESS):
                        self.report(f"{title}: {line.removeprefix(_PROGRESS)}")
                if ended := self.ended():
                    raise StackError(self.last_words(ended[0], "ended while it was starting"))
                if is_ready():
                    self.report(f"{title} is ready after {seconds:.0f} s")
                    return
                if time.monotonic() - reported_at > _REPORT_SECONDS:
                    so_far = f"{title} has been starting for {seconds:.0f} s"
                    self.report(": ".join(filter(None, (so_far, busy()))))
                    reported_at = time.monotonic()
                time.sleep(0.1)
        raise StackError(self.last_words(name, f"was not ready after {_READY_SECONDS:g} s"))


def _has_node(answer: httpx.Response) -> bool:
    """Whether Ray's dashboard lists a node that is alive."""
    return answer.is_success and bool(answer.json()["data"]["hostNameList"])
