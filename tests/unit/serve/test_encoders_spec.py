"""What a user decides about encoders, and what is refused."""

import json

import pytest
from pydantic import ValidationError

from workers.serve.encoders.spec import EncoderSpec, main, parse_encoder
from workers.serve.settings import ServeArgs


def spec(**fields: object) -> EncoderSpec:
    return EncoderSpec.model_validate(
        {"modality": "text", "kind": "synthetic", "width": 4, **fields}
    )


def test_a_short_form_names_modality_kind_and_width() -> None:
    assert parse_encoder("image=synthetic:640") == spec(modality="image", width=640)


def test_the_model_of_a_short_form_may_have_colons() -> None:
    parsed = parse_encoder("text=sentence-transformers:384:C:/models/minilm")
    assert parsed.model == "C:/models/minilm"


def test_the_long_form_has_every_field() -> None:
    fields = {"modality": "text", "kind": "synthetic", "width": 8, "max_batch": 7, "replicas": 2}
    assert parse_encoder(json.dumps(fields)) == spec(width=8, max_batch=7, replicas=2)


@pytest.mark.parametrize("text", ["text", "text=synthetic", "text:synthetic:4", ""])
def test_another_form_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="MODALITY=KIND:WIDTH"):
        parse_encoder(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("text=synthetic:wide", "'text=synthetic:wide': width: Input should be a valid integer"),
        ('{"kind": "clip"}', "modality: Field required"),
        ("text=sentence-transformers:384", "needs a model: a folder or a name"),
        ("text", "MODALITY=KIND:WIDTH"),
    ],
)
def test_the_check_of_texts_ends_with_one_line_about_the_first_wrong_one(
    text: str, line: str
) -> None:
    main(["image=synthetic:64"])
    with pytest.raises(SystemExit, match=line) as ended:
        main(["image=synthetic:64", text, "another"])
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kind": "clip"}, "'synthetic' or 'sentence-transformers'"),
        ({"width": 0}, "greater than or equal to 1"),
        ({"kind": "sentence-transformers"}, "'text' needs a model"),
        ({"model": "all-MiniLM-L6-v2"}, "is synthetic, so it has no model"),
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:0"}, "num_gpus 0"),
        ({"url": "https://example.org"}, "url"),
    ],
)
def test_an_invalid_encoder_is_rejected_with_a_message(
    fields: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        spec(**fields)


def test_texts_are_read_for_text_and_files_for_the_rest() -> None:
    assert spec().raw == "text"
    assert spec(modality="image").raw == "bytes"
    assert spec(modality="caption", takes="text").raw == "text"


def test_an_encoder_that_books_a_gpu_uses_it() -> None:
    assert (spec().placed_on, spec(num_gpus=0.5).placed_on) == ("cpu", "cuda")
    assert spec(num_gpus=1, device="cpu").placed_on == "cpu"


def test_clients_see_a_models_name_and_no_folder() -> None:
    assert spec().name == "synthetic"
    local = spec(kind="sentence-transformers", model="/srv/secret/minilm/")
    assert local.name == "sentence-transformers/minilm"


def test_a_modality_has_one_encoder_at_most() -> None:
    with pytest.raises(ValidationError, match="the modality 'text' more than once"):
        ServeArgs(store="file:///tmp/x", encoders=(spec(), spec(width=5)))


def test_an_encoder_with_no_room_for_a_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_queued of the encoder of 'text' is 10"):
        ServeArgs(store="file:///tmp/x", encoders=(spec(max_queued=10),))


def test_another_encoder_is_another_application() -> None:
    with_it = ServeArgs(store="file:///tmp/x", encoders=(spec(),))
    assert with_it.identity != ServeArgs(store="file:///tmp/x").identity
