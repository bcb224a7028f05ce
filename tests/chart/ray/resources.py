"""Custom resources of a worker group, as a shell, Ray's autoscaler and KubeRay read them."""

import json
import shlex

from tests.chart.release import Object


def custom_resources(group: Object) -> dict[str, int]:
    """The value of `ray start --resources=...`, which KubeRay runs in bash; none without it."""
    written = group["rayStartParams"].get("resources")
    if written is None:
        return {}
    (word,) = shlex.split(written)
    found: dict[str, int] = json.loads(word)
    assert found == _as_the_autoscaler_does(written)
    # getResourcesFromRayStartParams of its operator, which derives GPUs and other accelerators after it.
    assert found == json.loads(written.strip("'\"` "))
    return found


def _as_the_autoscaler_does(written: str) -> dict[str, int]:
    from ray.autoscaler._private.kuberay import autoscaling_config  # takes a second

    return autoscaling_config._get_custom_resources({}, {"resources": written}, "group")
