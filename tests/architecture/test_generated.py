"""Generated documents are up to date."""

import pytest

from cmcl.contract.encoder import EncoderSpec
from service.core.settings import Settings
from tests.architecture.generated import GENERATED, settings_document
from tests.architecture.repository import ROOT
from workers.serve.settings import ServeArgs
from workers.train.settings import TrainSettings


@pytest.mark.parametrize("name", GENERATED)
def test_it_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text() == GENERATED[name](), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    for model in (Settings, ServeArgs, EncoderSpec, TrainSettings):
        assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_tables_have_every_variable() -> None:
    document = settings_document()
    for field in [*Settings.model_fields, *TrainSettings.model_fields]:
        assert f"| `CMCL_{field.upper()}` |" in document
