"""Debian's buildah, run as root with its own storage folder.

Isolation is by chroot: processes see the files of their image, and the network and processes of the
machine. This suffices to test an image and its permissions, and works inside a container.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Certificates for pip inside the build, if the package index needs the machine's own.
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# buildah needs netavark, but reports its absence only during a build.
_NETAVARK = ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark")
# Docker's format would store the random name of the build container.
_FORMAT = ("--format", "oci")
_ISOLATION = "chroot"
# Without these it requests limits above those of a surrounding container.
_LIMITS = ("--ulimit=nofile=20000:20000", "--ulimit=nproc=20000:20000")
_MARK = "BUILDAH_CONTAINER"


class NoBuildah(Exception):
    """Images cannot be built here. The message says why."""


class BuildFailed(Exception):
    """A build failed. The message is the end of buildah's output."""


@dataclass(frozen=True)
class Container:
    """A container. `root`: folder of its files. `user`: user of its image."""

    id: str
    root: Path
    user: str


@dataclass(frozen=True)
class Buildah:
    """buildah with storage in `folder`, which takes some 15 GB with the driver overlay, and as much again
    for a second build. Without overlay in the kernel, vfs copies each layer and takes more than twice that."""

    folder: Path
    driver: str

    @classmethod
    def find(cls, folder: Path) -> "Buildah":
        """Raises NoBuildah if a program or a permission is missing."""
        if not shutil.which("buildah"):
            raise NoBuildah("buildah is not installed (apt-get install buildah netavark)")
        if os.geteuid() != 0:
            raise NoBuildah("buildah needs root here")
        folder.mkdir(parents=True, exist_ok=True)
        has_overlay = "overlay" in Path("/proc/filesystems").read_text().split()
        found = cls(folder, "overlay" if has_overlay else "vfs")
        found._try_out()
        if not any(Path(path).exists() for path in _NETAVARK):
            raise NoBuildah("netavark is not installed (apt-get install netavark)")
        return found

    def _try_out(self) -> None:
        """Check early that buildah works, because root inside a container may lack permissions."""
        done = self._run(["from", "scratch"], check=False)
        if done.returncode != 0:
            output = (done.stdout + done.stderr).strip()[-300:]
            raise NoBuildah(f"buildah cannot create a container here: {output}")
        self._run(["rm", done.stdout.strip()])

    def described(self) -> dict[str, str]:
        """Return the version and settings of buildah."""
        version = self._run(["--version"]).stdout.split()[2]
        return {"buildah": version, "storage driver": self.driver, "isolation": _ISOLATION}

    def has(self, image: str) -> bool:
        """Return whether the image exists locally."""
        return self._run(["inspect", "--type", "image", image], check=False).returncode == 0

    def import_tree(self, tree: Path, image: str, epoch: int) -> None:
        """Create an image with one layer from a folder."""
        container = self._run(["from", "scratch"]).stdout.strip()
        self._run(["add", "--quiet", container, str(tree), "/"])
        self._run(["commit", "--quiet", "--timestamp", str(epoch), *_FORMAT, container, image])
        self._run(["rm", container])

    def build(
        self, context: Path, target: str, image: str, arguments: Mapping[str, str], epoch: int
    ) -> None:
        """Build one target, reusing layers of earlier builds. Raises BuildFailed."""
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        certificates = f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro"
        command = [
            *("bud", "--isolation", _ISOLATION, "--pull=never", "--network", "host", "--layers"),
            *(*_FORMAT, *_LIMITS, certificates, *given, "--timestamp", str(epoch)),
            *("--target", target, "--tag", image, str(context)),
        ]
        self._run(command)

    def inspect(self, image: str) -> dict[str, Any]:
        """Return the configuration of an image."""
        answer = self._run(["inspect", "--type", "image", image]).stdout
        described: dict[str, Any] = json.loads(answer)["Docker"]
        return described

    def pack(self, image: str, folder: Path) -> None:
        """Return the compressed layers, as in a registry, and the manifest."""
        self._run(["push", "--quiet", *_FORMAT, image, f"dir:{folder}"])

    def unpacked_bytes(self, image: str) -> int:
        """Return the unpacked size."""
        with self.container(image) as container:
            return sum(
                entry.lstat().st_size
                for entry in container.root.rglob("*")
                if entry.is_file() and not entry.is_symlink()
            )

    @contextmanager
    def container(self, image: str) -> Iterator[Container]:
        """Run a container of an image; end its processes and delete it afterwards."""
        name = self._run(["from", "--pull=never", *_LIMITS, image]).stdout.strip()
        try:
            root = Path(self._run(["mount", name]).stdout.strip())
            container = Container(name, root, self.inspect(image)["config"]["User"])
            try:
                yield container
            finally:
                end_all_of(name)
        finally:
            self._run(["rm", name])

    def start(
        self,
        container: Container,
        command: Sequence[str],
        environment: Mapping[str, str],
        volumes: Mapping[Path, str],
        log: Path,
    ) -> subprocess.Popen[bytes]:
        """Start a process in it as the image's user. `volumes`: local folders by mount path."""
        marked = {**environment, _MARK: container.id}
        options = [f"--env={name}={value}" for name, value in marked.items()]
        options += [f"--volume={source}:{place}" for source, place in volumes.items()]
        run = [*("run", "--isolation", _ISOLATION), *options, container.id, "--", *command]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*self._program(), *run],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def forget(self) -> None:
        """Delete the folder with all images."""
        shutil.rmtree(self.folder)

    def _program(self) -> list[str]:
        places = [f"--root={self.folder / 'storage'}", f"--runroot={self.folder / 'run'}"]
        return ["buildah", f"--storage-driver={self.driver}", *places]

    def _run(
        self, arguments: Sequence[str], *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._program(), *arguments], capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            output = (done.stdout + done.stderr).strip()[-3000:]
            raise BuildFailed(f"buildah {arguments[0]} ended with {done.returncode}:\n{output}")
        return done


def end_all_of(container: str) -> None:
    """End every process of a container, found by an inherited environment variable."""
    mark = f"{_MARK}={container}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # Ended, or of another user.
