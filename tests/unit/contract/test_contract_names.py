"""Names are restricted, because they become object keys, URLs, metric labels and Ray job ids."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from cmcl.contract.modality import Modality, ModalityPair, ModelName

MODEL_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
MODALITY: TypeAdapter[str] = TypeAdapter(Modality)
MODALITIES = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)

ODD = [
    "",
    " ",
    "a b",
    "a/b",
    "../a",
    "a\\b",
    "a\n",
    "\na",
    "a\0",
    "é",
    "a@1",
    "a:b",
    "a%2fb",
    "a.b",
]


@pytest.mark.parametrize("name", [*ODD, "A", "-a", "a-", "a_b", "x" * 49])
def test_odd_model_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        MODEL_NAME.validate_python(name)


@pytest.mark.parametrize("name", [*ODD, "A", "_a", "2d", "a-b", "x" * 33])
def test_odd_modalities_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        MODALITY.validate_python(name)


@given(st.text(max_size=50))
@settings(max_examples=100)
def test_every_valid_name_is_safe_in_a_path(name: str) -> None:
    try:
        MODEL_NAME.validate_python(name)
    except ValidationError:
        return
    assert re.fullmatch("[a-z0-9-]+", name)


def test_a_pair_of_a_modality_with_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match="two different modalities, got 'image' twice"):
        ModalityPair(first="image", second="image")


@given(MODALITIES, MODALITIES)
@settings(max_examples=30)
def test_a_pair_is_the_same_pair_whichever_column_comes_first(first: str, second: str) -> None:
    if first == second:
        return
    there, back = ModalityPair(first=first, second=second), ModalityPair(first=second, second=first)
    assert there.key == back.key
    assert there != back
    assert there.modalities == (first, second)


@given(st.lists(MODALITIES, min_size=3, max_size=3, unique=True))
@settings(max_examples=30)
def test_different_pairs_have_different_keys(names: list[str]) -> None:
    first, second, third = names
    keys = {
        ModalityPair(first=a, second=b).key
        for a, b in ((first, second), (first, third), (second, third))
    }
    assert len(keys) == 3
