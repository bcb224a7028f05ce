"""The beginning without a shell: a form for a new model, and a model of the sample data of the repository."""

import hashlib
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field

from cmcl.contract.api.datasets import PostedDataset, Upload
from cmcl.contract.api.models import Model
from cmcl.contract.encoder import EncoderSpec, Media
from cmcl.contract.modality import NAME_PATTERN, Frozen
from cmcl.storage import layout
from service.api.datasets import post_dataset
from service.api.dependencies import ContextDep
from service.api.models import post_model
from service.api.problems import field_problems
from service.api.uploads import post_upload
from service.context import Context
from service.core.errors import Conflict, NotFound, Unprocessable
from service.core.principal import Principal
from service.database.rows import random_id
from service.datasets import uploads
from service.datasets.intake import SCHEME, NewDataset
from service.page.forms import ReadingWriter, posted, see_other, validated
from service.page.rendering import PREFIX, pages_of
from service.registry.models import NewModel

router = APIRouter(prefix=PREFIX)

# Browsers read patterns with the flag `v`, by which a hyphen in a class must be escaped.
BROWSER_NAME_PATTERN = NAME_PATTERN.replace("-]", r"\-]")
# Rows of the form; a modality can be added later.
_ROWS = 4
_SAMPLE = Path(__file__).parents[2] / "examples" / "raw" / "emoji.tar"
_SAMPLE_NAME = "emoji"


class ModelForm(Frozen):
    """A model as the form describes it: a row for each modality, whose fields have the same index."""

    name: str = ""
    modality: tuple[str, ...] = Field(default=(), max_length=_ROWS)
    encoder: tuple[str, ...] = Field(default=(), max_length=_ROWS)
    width: tuple[str, ...] = Field(default=(), max_length=_ROWS)
    policy: str = "improve"

    def request(self) -> NewModel:
        """The body of the request. Raises RequestValidationError."""
        rows = zip(self.modality, self.encoder, self.width, strict=False)
        modalities = {
            name.strip(): {"encoder": encoder} if encoder else {"width": width or None}
            for name, encoder, width in rows
            if name.strip()
        }
        values = {"name": self.name, "modalities": modalities, "policy": self.policy}
        return validated(NewModel, values)

    def place(self, field: str) -> str:
        """The field of the form for one of the request: `modalities.image.width` is `width-0` if image is in row 0."""
        modality, _, part = field.removeprefix("modalities.").partition(".")
        names = [name.strip() for name in self.modality]
        # An odd name is quoted: modalities['My images'].
        named = [name for name in names if name and (name == modality or repr(name) in field)]
        if not named:
            return "name" if field == "name" else "modalities"
        return f"{part if part in ('encoder', 'width') else 'modality'}-{names.index(named[0])}"


@router.get("/new")
def model_form(request: Request, _: ReadingWriter, context: ContextDep) -> Response:
    """The form of a new model. The first two encoders are suggested."""
    suggested = sorted(context.settings.encoders, key=_for_a_start)[:2]
    names = tuple(each.name for each in suggested)
    return _form(
        request, context, ModelForm(modality=tuple(each.takes for each in suggested), encoder=names)
    )


@router.post("/new")
def create_model(
    request: Request,
    form: Annotated[ModelForm, posted(ModelForm)],
    principal: ReadingWriter,
    context: ContextDep,
) -> Response:
    """Create the model, and lead to the form of its first dataset. A form with errors is returned with these."""
    try:
        answer = post_model(form.request(), principal, context, None)
    except (RequestValidationError, Conflict, Unprocessable) as error:
        return _form(request, context, form, error)
    model = Model.model_validate_json(bytes(answer.body))
    return see_other(request, f"models/{model.name}/post", "model-created")


def _form(
    request: Request,
    context: Context,
    form: ModelForm,
    error: RequestValidationError | Conflict | Unprocessable | None = None,
) -> Response:
    """The form with its values. `error`: why no model was created, which is said at the field."""
    errors = dict[str, str]()
    if isinstance(error, Conflict):
        # The name is taken, or the owner has too many models.
        errors["name"] = str(error)
    elif error is not None:
        for each in field_problems(error):
            errors.setdefault(form.place(each.field), each.message)
    return pages_of(request).render(
        request,
        "new_model.html",
        200 if error is None else 409 if isinstance(error, Conflict) else 422,
        form=form,
        errors=errors,
        encoders=sorted(context.settings.encoders, key=_for_a_start),
        rows=_ROWS,
        name_pattern=BROWSER_NAME_PATTERN,
    )


@router.post("/sample")
def post_sample(request: Request, principal: ReadingWriter, context: ContextDep) -> Response:
    """Create a model of the sample data, post them, and show the job. A second time leads to the same job."""
    image, text = _encoder(context, "image"), _encoder(context, "text")
    if image is None or text is None or not _SAMPLE.exists():
        raise NotFound("the sample data need examples/raw, and encoders of images and of texts")
    modalities = {"image": {"encoder": image.name}, "text": {"encoder": text.name}}
    post_model(
        validated(NewModel, {"name": _SAMPLE_NAME, "modalities": modalities}),
        principal,
        context,
        None,
    )
    values = {
        "model": _SAMPLE_NAME,
        "name": _SAMPLE_NAME,
        "pair": {"first": "image", "second": "text"},
        "shards": [{"uri": _upload(_SAMPLE, principal, context)}],
        "evaluation_share": 0.1,
    }
    answer = post_dataset(validated(NewDataset, values), principal, context, None)
    posted_dataset = PostedDataset.model_validate_json(bytes(answer.body))
    # A sealed dataset has a job.
    address = f"jobs/{posted_dataset.job.id}" if posted_dataset.job else "jobs"
    return see_other(request, address, "dataset-posted")


def has_sample(context: Context) -> bool:
    """Whether the sample data can be learned here."""
    media: tuple[Media, Media] = ("image", "text")
    return _SAMPLE.exists() and all(_encoder(context, each) for each in media)


def _encoder(context: Context, takes: Media) -> EncoderSpec | None:
    return next((each for each in context.settings.encoders if each.takes == takes), None)


def _for_a_start(encoder: EncoderSpec) -> tuple[bool, bool, str]:
    """Pictures and texts first: most begin with them."""
    return encoder.takes != "image", encoder.takes != "text", encoder.name


def _upload(file: Path, principal: Principal, context: Context) -> str:
    """Store a file as a complete upload, and return its address."""
    content = file.read_bytes()
    body = uploads.UploadRequest(filename=file.name, bytes=len(content))
    answer = post_upload(body, principal, context, None)
    upload, name = Upload.model_validate_json(bytes(answer.body)), random_id()
    with context.store.writer(layout.upload_file(upload.id, name), len(content)) as target:
        target.write(content)
    uploads.complete(context, upload.id, name, hashlib.sha256(content).hexdigest(), principal)
    return f"{SCHEME}{upload.id}"
