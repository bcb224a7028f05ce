"""A client for the REST API, the command line, and a local stack.

`service` and `workers` import `cmcl.contract` alone, so each name below is loaded when it is first
used: a process that needs the contract loads no HTTP client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmcl.client import AsyncClient as AsyncClient
    from cmcl.client import Client as Client
    from cmcl.client import CmclError as CmclError
    from cmcl.client import FieldError as FieldError
    from cmcl.client import Item as Item
    from cmcl.client import Query as Query
    from cmcl.client import Retries as Retries
    from cmcl.client import Unreachable as Unreachable
    from cmcl.client import WaitTimeout as WaitTimeout
    from cmcl.client import WrongServer as WrongServer
    from cmcl.contract.dataset import ShardRef as ShardRef
    from cmcl.contract.modality import ModalityPair as ModalityPair
    from cmcl.contract.model import Gate as Gate
    from cmcl.contract.model import ModalitySpec as ModalitySpec
    from cmcl.contract.model import ModelSpec as ModelSpec
    from cmcl.contract.model import TrainingSpec as TrainingSpec


_MODULES = {
    "cmcl.client": (
        "AsyncClient",
        "Client",
        "CmclError",
        "FieldError",
        "Item",
        "Query",
        "Retries",
        "WaitTimeout",
        "Unreachable",
        "WrongServer",
    ),
    "cmcl.contract.dataset": ("ShardRef",),
    "cmcl.contract.modality": ("ModalityPair",),
    "cmcl.contract.model": ("Gate", "ModalitySpec", "ModelSpec", "TrainingSpec"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
