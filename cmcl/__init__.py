"""What users import and type: a client for the REST API, the command line, and a local stack."""

from cmcl.client import AsyncClient, Client, CmclError

__all__ = ["AsyncClient", "Client", "CmclError"]
