"""Encoders that the operator has declared."""

from fastapi import APIRouter

from cmcl.contract.api.models import Encoder
from service.api.dependencies import ContextDep, Reader
from service.api.pagination import Page

router = APIRouter(prefix="/v1/encoders", tags=["encoders"])


@router.get("")
def list_encoders(_: Reader, context: ContextDep) -> Page[Encoder]:
    """List the declared encoders by name. All are on one page."""
    declared = sorted(context.settings.encoders, key=lambda encoder: encoder.name)
    return Page(items=[Encoder.model_validate(each, from_attributes=True) for each in declared])
