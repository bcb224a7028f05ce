"""Settings of the launcher: which one, how many ranks, what drivers and pods need."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings

from cmcl.contract.methods import Priority
from service.launchers.kuberay_resource import read_pod_templates
from service.launchers.port import check_labels
from service.setting_values import JsonObject, ServerAddress

# The permitted fields. Ray's others are for a single process or for debugging.
FIELDS = (
    "working_dir",
    "py_modules",
    "excludes",
    "pip",
    "uv",
    "conda",
    "env_vars",
    "worker_process_setup_hook",
    "py_executable",
    "image_uri",
    "config",
)

_CODE = ("working_dir", "py_modules")


class LauncherSettings(BaseSettings):
    """A part of `service.settings.Settings`, which is read from the environment as a whole."""

    launcher: Literal["ray", "kuberay"] = Field(
        default="ray",
        description="how attempts run: ray, with resident ranks on one Ray cluster, or kuberay, each as a RayJob with "
        "its own cluster",
    )
    ray_address: ServerAddress = Field(
        default="http://127.0.0.1:8265",
        description="address of Ray's dashboard, where jobs are submitted",
    )
    attempts_at_once: int | None = Field(
        default=None,
        ge=0,
        description="attempts that are submitted and have not ended, over all owners; further jobs wait in the "
        "database. 0: unlimited. Default: with the ray launcher as many as the CPUs, GPUs and memory of the "
        "cluster's nodes suffice for, at least 1; with the kuberay launcher unlimited where Kueue queues them, "
        "else 16. Set it where the nodes of a Ray cluster are added as needed",
    )
    ranks: int = Field(
        default=1,
        ge=1,
        description="training processes of one attempt; more where one GPU or node is too slow for a dataset",
    )
    min_ranks: int | None = Field(
        default=None,
        ge=1,
        description="minimum ranks with which an attempt continues after losing some; with the ray "
        "launcher it also starts with fewer if there is no room for all. Default: all ranks "
        "are required",
    )
    gpus_per_rank: float = Field(
        default=0, ge=0, description="GPUs for each rank; 0 trains on CPUs"
    )
    ranks_idle_seconds: float = Field(
        default=1800,
        ge=0,
        description="ranks that stay on a Ray cluster exit and free their resources after this long "
        "without an attempt; 0: never",
    )
    prepare_workers: int = Field(
        default=4,
        ge=1,
        description="with the kuberay launcher, CPUs of the cluster that prepares datasets, in pods like those "
        "of ranks; each reads or encodes one part of a dataset at a time",
    )
    prepare_gpus_per_worker: float = Field(
        default=0, ge=0, description="with the kuberay launcher, GPUs for each of these CPUs"
    )
    prepare_memory_per_pod: int = Field(
        default=0,
        ge=0,
        description="with the kuberay launcher, bytes of memory that parts of datasets in work may reserve together in "
        "each of these pods; the rest is for Ray and encoders. 0: the pod's limit",
    )
    runtime_env: JsonObject[str, Any] = Field(
        default={},
        description="Ray runtime environment of attempts and of preparation, as a JSON object",
    )
    job_labels: JsonObject[str, str] = Field(
        default={},
        description="labels of all attempts in addition to our own, as a JSON object of strings",
    )
    kuberay_image: str = Field(
        default="", description="image of their pods; required with the kuberay launcher"
    )
    kuberay_release: str = Field(
        default="",
        max_length=63,
        description="their label app.kubernetes.io/instance, which distinguishes several installations",
    )
    kuberay_owner: str = Field(
        default="",
        description="ConfigMap in that namespace; when it is deleted, Kubernetes deletes the RayJobs too",
    )
    kuberay_service_account: str = Field(
        default="default", description="service account of their pods; set it for workload identity"
    )
    kuberay_priority_classes: JsonObject[Priority, str] = Field(
        default={},
        description="Kueue WorkloadPriorityClass for each model priority, as a JSON object with low, "
        "normal and high; a missing one means no class",
    )
    kuberay_ranks_per_pod: int = Field(
        default=1, ge=1, description="ranks that share a pod; as many as a node has GPUs"
    )
    kuberay_gpu_resource: str = Field(
        default="nvidia.com/gpu",
        description="resource name with which pods request GPUs; another one for MIG slices or other vendors",
    )
    kuberay_pod_template: Path | None = Field(
        default=None,
        description="YAML file with pod templates `head` and `workers`, merged over ours, and `submitter`",
    )

    kuberay_submission_mode: Literal["HTTPMode", "K8sJobMode", "SidecarMode"] = Field(
        default="HTTPMode", description="how KubeRay submits the command to Ray"
    )

    @field_validator("runtime_env")
    @classmethod
    def _must_be_a_runtime_env(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_runtime_env(value)
        return value

    @field_validator("job_labels")
    @classmethod
    def _must_be_labels(cls, value: dict[str, str]) -> dict[str, str]:
        check_labels(value)
        return value

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        if self.fewest_ranks > self.ranks:
            raise ValueError(
                f"CMCL_MIN_RANKS is {self.min_ranks}; it must be from 1 to CMCL_RANKS, "
                f"which is {self.ranks}"
            )
        return self

    @model_validator(mode="after")
    def _check_rayjobs(self) -> Self:
        if self.launcher != "kuberay":
            return self
        if not self.kuberay_image:
            raise ValueError("CMCL_KUBERAY_IMAGE is missing: the pods of RayJobs need an image")
        try:
            read_pod_templates(self.kuberay_pod_template)
        except ValueError as error:
            raise ValueError(f"CMCL_KUBERAY_POD_TEMPLATE: {error}") from error
        return self

    @property
    def fewest_ranks(self) -> int:
        """`min_ranks`, resolved."""
        return self.ranks if self.min_ranks is None else self.min_ranks


def check_runtime_env(value: Mapping[str, Any]) -> None:
    """Raises ValueError with a message for the operator."""
    for name in value:
        if name not in FIELDS:
            raise ValueError(f"it has the field {name!r}; permitted are {', '.join(FIELDS)}")
    _check_variables(value.get("env_vars", {}))
    for name in _CODE:
        for address in _addresses(name, value.get(name, [])):
            # A folder would be one of the service's image, and be packed again for each attempt.
            if "://" not in address:
                raise ValueError(
                    f"{name} has {address!r}; it must be an address that all nodes can read, such as "
                    "s3://bucket/code.zip"
                )


def _check_variables(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"env_vars is {value!r}; it must be an object of strings")  # noqa: TRY004
    for name, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"env_vars.{name} is {text!r}; it must be a string, in quotes")  # noqa: TRY004


def _addresses(name: str, value: Any) -> Iterator[str]:
    for address in value if isinstance(value, list) else [value]:
        if not isinstance(address, str):
            raise ValueError(f"{name} has {address!r}; it must be an address")  # noqa: TRY004
        yield address
