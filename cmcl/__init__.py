"""What users import and type: a client for the REST API, the command line, and a local stack."""

from cmcl.client import Client, CmclError

__all__ = ["Client", "CmclError"]
