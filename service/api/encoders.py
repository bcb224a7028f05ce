"""Encoders that the operator has declared."""

from typing import Self

from fastapi import APIRouter
from pydantic import BaseModel, Field

from cmcl.contract.encoder import EncoderSpec, Media
from service.api.dependencies import ContextDep, Reader
from service.api.pagination import Page

router = APIRouter(prefix="/v1/encoders", tags=["encoders"])


class EncoderView(BaseModel):
    """A declared encoder, by whose name models bind a modality to it, and its limits for one raw item."""

    name: str
    title: str = Field(description="kind and model")
    takes: Media
    width: int = Field(description="of its features")
    max_item_bytes: int = Field(description="of one text or file; larger ones are refused")
    max_pixels: int = Field(description="of one image or video frame")
    max_seconds: float = Field(description="of one audio or video")

    @classmethod
    def of(cls, encoder: EncoderSpec) -> Self:
        """Create it from a declaration."""
        return cls(**{field: getattr(encoder, field) for field in cls.model_fields})


@router.get("")
def list_encoders(_: Reader, context: ContextDep) -> Page[EncoderView]:
    """List the declared encoders by name. All are on one page."""
    declared = sorted(context.settings.encoders, key=lambda encoder: encoder.name)
    return Page(items=[EncoderView.of(encoder) for encoder in declared])
