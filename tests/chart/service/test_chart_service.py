"""The control plane: its Deployment and what belongs to it."""

from typing import Any

import pytest

from service.__main__ import main
from service.auth.signing import make_pair
from service.core.settings import Settings
from service.events.webhook_secrets import new_key
from tests.chart.release import (
    Release,
    each_release,
    environment_of,
    is_uninstall_hook,
    render,
    values_of,
)
from workers.serve.settings import ServeArgs


@each_release()
def test_service_selects_its_own_pods_only(release: Release) -> None:
    selector = release.one("Service", "demo-cmcl")["spec"]["selector"]
    deployment = release.one("Deployment", "demo-cmcl")["spec"]
    assert deployment["selector"]["matchLabels"] == selector
    selected = [
        where
        for where, template in release.pod_templates().items()
        if selector.items() <= template["metadata"]["labels"].items()
    ]
    assert selected == ["Deployment demo-cmcl spec/template"]


def test_chart_sets_every_setting_and_no_other(
    trial: Release, production: Release, queued: Release
) -> None:
    known = {f"CMCL_{field.upper()}" for field in Settings.model_fields}
    assert set(production.settings()) | set(queued.settings()) == known
    assert {name for name in _migration(production) if name.startswith("CMCL_")} <= known
    # Each launcher has its own settings.
    of_rayjobs = {name for name in known if name.startswith("CMCL_KUBERAY_")}
    assert known - set(production.settings()) == {*of_rayjobs, "CMCL_MIN_RANKS"}
    of_secrets = {"CMCL_SNAPSHOT_SIGNING_KEY", "CMCL_METRICS_KEY", "CMCL_ENCRYPTION_KEY"}
    of_ray = {"CMCL_RAY_ADDRESS", "CMCL_ATTEMPTS_AT_ONCE"}
    assert known - set(queued.settings()) == {*of_ray, *of_secrets, "CMCL_PAGE_URL"}
    # Empty, they would be an issuer without a name.
    unset = {"CMCL_OIDC_ISSUER", "CMCL_OIDC_AUDIENCE", "CMCL_MIN_RANKS"}
    assert known - set(trial.settings()) == {*of_rayjobs, *unset, *of_secrets, "CMCL_PAGE_URL"}


def _migration(release: Release) -> Any:
    return environment_of(release.container("migration"))


def _set_environment(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the pod's environment, with values for the Secrets that it needs."""
    secrets = {
        "CMCL_DATABASE_URL": "postgresql://from-secret",
        "CMCL_ADMIN_KEY": "k" * 32,
        "CMCL_METRICS_KEY": "m" * 32,
        "CMCL_SNAPSHOT_SIGNING_KEY": make_pair().private,
        "CMCL_ENCRYPTION_KEY": new_key(),
    }
    for name, value in release.settings().items():
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
        elif not value["secretKeyRef"].get("optional"):
            monkeypatch.setenv(name, secrets[name])


def test_settings_arrive_as_the_values_say(
    production: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set_environment(production, monkeypatch)
    settings = Settings()
    assert settings.allowed_prefixes == ("s3://captures/2026", "s3://captures-eu")
    assert settings.upload_bytes_max == 10737418240
    assert (settings.ranks, settings.gpus_per_rank) == (5, 1)
    assert settings.store_uri == "s3://cmcl-production/store"
    assert settings.ray_address == "http://demo-cmcl-training-head-svc:8265"
    assert (settings.auth, settings.oidc_issuer) == ("on", "https://login.example.org")
    assert (settings.page, settings.page_url) == ("on", "https://cmcl.example.org/ui")
    assert settings.admin_key is not None
    assert settings.snapshot_signing_key is not None
    assert settings.encryption_key is not None


def test_chart_and_service_have_the_same_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    differ_on_purpose = {"database_url", "store_uri", "ray_address", "host", "embeddings_url"}
    # Behind the proxy of the pod.
    differ_on_purpose |= {"port", "behind_proxy"}
    # The chart knows how many pods of ranks there are.
    differ_on_purpose |= {"attempts_at_once"}
    _set_environment(render({}), monkeypatch)
    rendered = Settings().model_dump(exclude=differ_on_purpose)
    defaults = {name: Settings.model_fields[name].default for name in rendered}
    assert rendered == defaults


def test_changed_settings_restart_the_pods(trial: Release) -> None:
    values = values_of("trial")
    values["service"]["maxAttempts"] = 4
    assert _checksum(render(values)) != _checksum(trial)
    assert _checksum(render(values_of("trial"))) == _checksum(trial)


def _checksum(release: Release) -> Any:
    template = release.one("Deployment", "demo-cmcl")["spec"]["template"]
    return template["metadata"]["annotations"]["checksum/settings"]


@each_release()
def test_secrets_are_in_no_config_map_and_made_by_others(release: Release) -> None:
    data = release.one("ConfigMap", "demo-cmcl")["data"]
    assert not {"CMCL_ADMIN_KEY", "CMCL_SNAPSHOT_SIGNING_KEY", "CMCL_METRICS_KEY"} & data.keys()
    # A site may add objects.
    ours = [path for path in release.objects if not path.startswith("extra-objects")]
    assert "Secret" not in [release.objects[path]["kind"] for path in ours]


def test_serving_has_the_public_half_of_the_key_that_signs(production: Release) -> None:
    public = values_of("production")["access"]["endpoint"]["publicKey"]
    assert production.serve_args()["access_public_key"] == public
    assert ServeArgs.model_validate(production.serve_args()).access_public_key == public


@each_release()
def test_a_key_is_always_required(release: Release) -> None:
    assert "exec deployment/demo-cmcl -- python -m service keys create" in release.notes


@each_release()
def test_kubernetes_injects_no_service_variables(release: Release) -> None:
    for template in release.pod_templates().values():
        assert template["spec"]["enableServiceLinks"] is False


def test_identities_of_service_and_ray_are_two(production: Release) -> None:
    roles = {
        item["metadata"]["name"]: item["metadata"]["annotations"]["example.org/role"]
        for item in production.of_kind("ServiceAccount")
        if not is_uninstall_hook(item)
    }
    assert roles == {
        "demo-cmcl": "cmcl-service",
        "demo-cmcl-migration": "cmcl-service",
        "demo-cmcl-ray": "cmcl-ray",
    }
    used = {
        where.partition(" ")[0]: pod["spec"]["serviceAccountName"]
        for where, pod in production.pod_templates(at_the_end=False).items()
    }
    assert used == {
        "Deployment": "demo-cmcl",
        "CronJob": "demo-cmcl",
        "Job": "demo-cmcl-migration",
        # The test asks for nothing.
        "Pod": "default",
        "RayCluster": "demo-cmcl-ray",
        "RayService": "demo-cmcl-ray",
    }


@each_release()
def test_notes_name_objects_that_exist(release: Release) -> None:
    assert "rollout status deployment/demo-cmcl\n" in release.notes
    assert "Only uploaded datasets" not in release.notes
    assert "Only uploaded datasets" in render({}).notes


def _of_proxy(release: Release) -> dict[str, str]:
    """Variables of the proxy in the service's pods, without its addresses."""
    spec = release.one("Deployment", "demo-cmcl")["spec"]["template"]["spec"]
    (proxy,) = [each for each in spec["initContainers"] if each["name"] == "proxy"]
    environment = {each["name"]: each["value"] for each in proxy["env"]}
    settings = release.settings()
    assert environment.pop("CMCL_PROXY_LISTEN") == ":8000"
    service = f"{settings['CMCL_HOST']}:{settings['CMCL_PORT']}"
    assert environment.pop("CMCL_PROXY_SERVICE") == service
    assert spec["containers"][0]["ports"] == [{"name": "http", "containerPort": 8000}]
    # As long as the service runs, and longer while it ends.
    assert proxy["restartPolicy"] == "Always"
    return environment


def test_proxies_are_trusted_only_where_they_are_named() -> None:
    assert _of_proxy(render({})) == {}
    named = _of_proxy(render({"service": {"trustedProxies": ["10.0.3.7", "fd00::/8"]}}))
    assert named == {"CMCL_PROXY_TRUSTED": "10.0.3.7,fd00::/8"}


def test_the_migration_runs_a_command_that_the_service_has(gpu: Release) -> None:
    container = gpu.container("migration")
    assert container["image"] == gpu.container("service")["image"]
    assert "command" not in container, "the image's own is `python -m service`"
    with pytest.raises(SystemExit) as end:
        main([*container["args"], "--help"])
    assert end.value.code == 0
