"""How much an attempt is wanted. By itself, without pydantic: whatever starts for each attempt loads it."""

from typing import Literal

Priority = Literal["low", "normal", "high"]
