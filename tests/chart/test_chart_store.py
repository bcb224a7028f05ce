"""Object storage: the same for the control plane and for every Ray node."""

from tests.chart.release import Object, Release, each_release, environment_of

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def _pods(release: Release) -> list[Object]:
    """Pods that use the store: all but the migration and the test."""
    return [
        template["spec"]
        for where, template in release.pod_templates().items()
        if where.startswith(("Deployment", "Ray"))
    ]


def _containers(release: Release) -> list[Object]:
    return [spec["containers"][0] for spec in _pods(release)]


def _aws(container: Object) -> Object:
    environment = environment_of(container)
    return {name: value for name, value in environment.items() if name.startswith("AWS_")}


def test_every_pod_reaches_the_same_bucket(production: Release) -> None:
    expected = {
        "AWS_ENDPOINT_URL": "https://objects.example.org",
        "AWS_DEFAULT_REGION": "eu-central-1",
        **{key: {"secretKeyRef": {"name": "cmcl-objects", "key": key}} for key in KEYS},
    }
    assert len(_containers(production)) == 7
    for container in _containers(production):
        assert _aws(container) == expected


@each_release()
def test_what_pods_write_is_on_a_disk(release: Release) -> None:
    """Uploads, shards and rows of ranks go to /tmp: a tmpfs would exceed the pod's memory."""
    for template in release.pod_templates().values():
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert "medium" not in volumes["tmp"]["emptyDir"]
        assert {"name": "tmp", "mountPath": "/tmp"} in template["spec"]["containers"][0][
            "volumeMounts"
        ]
