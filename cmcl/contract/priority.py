"""The priority of an attempt. In its own module without pydantic, because every attempt's driver imports it."""

from typing import Literal

Priority = Literal["low", "normal", "high"]
