"""Whether a runtime environment can be one, seen before Ray is asked.

Ray looks at it when a job starts, minutes after the service did, and job by job. It takes a second
to import besides, so its rules that matter here are written down, and a test compares them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# What a site may set. The others of Ray's are for a single process or for debugging.
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


def check_runtime_env(value: Mapping[str, Any]) -> None:
    """Raises ValueError, in words."""
    for name in value:
        if name not in FIELDS:
            raise ValueError(f"it has the field {name!r}; permitted are {', '.join(FIELDS)}")
    _check_variables(value.get("env_vars", {}))
    for name in _CODE:
        for address in _addresses(name, value.get(name, [])):
            # A folder would be one of the service's own image, and be packed anew for each attempt.
            if "://" not in address:
                raise ValueError(
                    f"{name} has {address!r}; it must be an address that all nodes can read, such as "
                    "s3://bucket/code.zip"
                )


def _check_variables(value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"env_vars is {value!r}; it must be an object of names and texts")  # noqa: TRY004
    for name, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"env_vars.{name} is {text!r}; it must be a text, in quotes")  # noqa: TRY004


def _addresses(name: str, value: Any) -> Iterator[str]:
    for address in value if isinstance(value, list) else [value]:
        if not isinstance(address, str):
            raise ValueError(f"{name} has {address!r}; it must be an address")  # noqa: TRY004
        yield address
