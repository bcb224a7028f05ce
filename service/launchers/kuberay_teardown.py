"""Delete a release's Ray clusters before Helm deletes the rest: `python -m service.launchers.kuberay_teardown`.

KubeRay must act during deletion: a finalizer keeps a RayService until its clusters are gone, and a
cluster with state in Redis until a Job has removed that state. `helm uninstall` waits for neither and
deletes what they need at the same time: NetworkPolicies, the Job's service account and, with
deploy/with-operator, KubeRay itself. So this runs first, as a hook, and ends when no Ray pod is left.

The control plane is deleted first, because it would submit its attempts again.
Exit status 1: something is left at the deadline.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from kubernetes.client import ApiException, AppsV1Api, CoreV1Api
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from service.launchers.kuberay import GROUP, RELEASE_LABEL, VERSION, connected

# Owners first: KubeRay recreates a deleted cluster of a RayService.
PLURALS = ("rayjobs", "rayservices", "rayclusters")
_PODS = "app.kubernetes.io/component in (training,serving)"
_SERVICE = "app.kubernetes.io/component=service"
_NOT_FOUND = 404
_LOOK_SECONDS = 2.0
# Timeouts to connect, and for a call.
_TIMES = (5, 30)


class Teardown:
    """The objects of one release in one namespace. Every method may raise ApiException."""

    def __init__(self, api: Any, namespace: str, release: str) -> None:
        self._rays = api
        self._core, self._apps = CoreV1Api(api.api_client), AppsV1Api(api.api_client)
        self._namespace = namespace
        self._selector = f"{RELEASE_LABEL}={release}"

    def delete_deployment(self, name: str) -> None:
        """Delete the control plane's Deployment; a missing one is no error."""
        delete = self._apps.delete_namespaced_deployment
        _ignore_missing(delete, name, self._namespace, _request_timeout=_TIMES)

    def delete_rays(self) -> None:
        """Delete all Ray objects of the release; unknown kinds are skipped."""
        for plural in PLURALS:
            delete = self._rays.delete_collection_namespaced_custom_object
            _ignore_missing(delete, **self._kind(plural))

    def left_of_service(self) -> list[str]:
        return self._pods(_SERVICE)

    def left_of_rays(self) -> list[str]:
        """Ray objects and pods, as kubectl names them."""
        found = []
        for plural in PLURALS:
            look = self._rays.list_namespaced_custom_object
            listed = _ignore_missing(look, **self._kind(plural))
            items = listed["items"] if listed else []
            found += [f"{plural}.{GROUP}/{item['metadata']['name']}" for item in items]
        return found + self._pods(_PODS)

    def _pods(self, which: str) -> list[str]:
        selector = f"{self._selector},{which}"
        listed: Any = self._core.list_namespaced_pod(
            self._namespace, label_selector=selector, _request_timeout=_TIMES
        )
        return [f"pod/{pod.metadata.name}" for pod in listed.items]

    def _kind(self, plural: str) -> dict[str, Any]:
        return {
            "group": GROUP,
            "version": VERSION,
            "namespace": self._namespace,
            "plural": plural,
            "label_selector": self._selector,
            "_request_timeout": _TIMES,
        }


def main(
    arguments: Sequence[str],
    connect: Callable[[], Any] = connected,
    pause: Callable[[float], object] = time.sleep,
) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="teardown")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--release", required=True, help="of Helm")
    parser.add_argument("--deployment", required=True, help="of the control plane")
    parser.add_argument("--seconds", type=float, required=True, help="until it gives up")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    try:
        teardown = Teardown(connect(), options.namespace, options.release)
        teardown.delete_deployment(options.deployment)
        left = _wait(teardown.left_of_service, deadline, pause)
        if not left:
            teardown.delete_rays()
            left = _wait(teardown.left_of_rays, deadline, pause)
    except (ApiException, HTTPError, ConfigException, OSError) as error:
        print(f"Kubernetes: {error}", file=sys.stderr)
        return 1
    if left:
        print(
            f"still there after {options.seconds:g} s: {', '.join(left)}. Is KubeRay's operator running? "
            "`helm uninstall --no-hooks` deletes the release without it; what is left of Ray then stays.",
            file=sys.stderr,
        )
        return 1
    return 0


def _wait(
    look: Callable[[], list[str]], deadline: float, pause: Callable[[float], object]
) -> list[str]:
    """Wait until nothing is left or the deadline passes; return the rest. Prints each change."""
    said: list[str] = []
    while left := look():
        if left != said:
            print(f"waiting for {', '.join(left)}", flush=True)
        said = left
        if time.monotonic() >= deadline:
            break
        pause(_LOOK_SECONDS)
    return left


def _ignore_missing(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The result; None if Kubernetes does not know the object or kind."""
    try:
        return call(*arguments, **named)
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
