"""Every route of the page that changes something: its scope, other owners, other sites, and what it saw."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastapi.routing import iter_route_contexts

from service.core.principal import Scope
from service.page.rendering import PREFIX
from tests.fakes.control_plane import ControlPlane
from tests.unit.service.auth.key_client import ADMIN_KEY, EVERY_SCOPE, KeyClient
from tests.unit.service.auth.test_every_route import make_things
from tests.unit.service.page.actions import (
    ABOUT_ONE_THING,
    ACTIONS,
    OF_SCRIPTS,
    OPEN,
    WITH_REVISION,
)
from tests.unit.service.page.browser import Browser

FOREIGN: dict[str, str | None] = {
    "Origin": "https://evil.example",
    "Sec-Fetch-Site": "cross-site",
}


@dataclass(frozen=True)
class World:
    """An owner with one thing of each kind, and browsers of several keys."""

    plane: ControlPlane
    things: dict[str, str]
    owner: Browser
    stranger: Browser
    without: dict[Scope, Browser]


def _browser(operator: KeyClient, name: str, owner: str, scopes: set[str]) -> Browser:
    browser = Browser(operator.plane)
    key = operator.make_key(name, sorted(scopes), owner=owner)["key"]
    assert browser.sign_in(key).status_code == 303
    return browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    plane = ControlPlane(tmp_path_factory.mktemp("actions"), auth="on", admin_key=ADMIN_KEY)
    operator, every = KeyClient(plane, ADMIN_KEY), set(EVERY_SCOPE)
    things = make_things(plane, operator.client_with_key("maker", owner="ours"), "our-model")
    yield World(
        plane,
        things,
        _browser(operator, "owner", "ours", every),
        _browser(operator, "stranger", "theirs", every),
        {scope: _browser(operator, f"not-{scope}", "ours", every - {scope}) for scope in Scope},
    )
    plane.close()


def test_the_table_has_every_form(world: World) -> None:
    routes = {
        str(context.path).removeprefix(f"{PREFIX}/")
        for context in iter_route_contexts(world.plane.app.state.page.routes)
        if context.methods and "POST" in context.methods
    }
    assert routes == {*ACTIONS, *OPEN, *OF_SCRIPTS}


@pytest.mark.parametrize("path", ACTIONS)
def test_it_needs_its_scope_and_read(world: World, path: str) -> None:
    action, address = ACTIONS[path], f"/ui/{path.format(**world.things)}"
    for scope in (action.scope, Scope.READ) if action.needs_read else (action.scope,):
        answers = [world.without[scope].post(address, data=action.form)]
        if action.has_page:
            answers.append(world.without[scope].get(address + action.query))
        for answer in answers:
            assert answer.status_code == 403, answer.text
            assert f"this needs the scope &#39;{scope}&#39;" in answer.text


@pytest.mark.parametrize("path", ABOUT_ONE_THING)
def test_things_of_another_owner_are_not_there(world: World, path: str) -> None:
    action, address = ACTIONS[path], f"/ui/{path.format(**world.things)}"
    assert world.stranger.post(address, data=action.form).status_code == 404


@pytest.mark.parametrize("path", ACTIONS)
def test_no_other_site_can_send_its_form(world: World, path: str) -> None:
    address = f"/ui/{path.format(**world.things)}"
    answer = world.owner.post(address, data=ACTIONS[path].form, headers=FOREIGN)
    assert answer.status_code == 403
    assert "comes from another site" in answer.text


@pytest.mark.parametrize("path", WITH_REVISION)
def test_what_was_seen_must_be_named(world: World, path: str) -> None:
    form = {**ACTIONS[path].form, "seen": ""}
    answer = world.owner.post(f"/ui/{path.format(**world.things)}", data=form)
    assert answer.status_code == 422
    assert "seen" in answer.text


@pytest.mark.parametrize("path", WITH_REVISION)
def test_another_state_is_shown_and_not_changed(world: World, path: str) -> None:
    """Nothing has the revision 999999999."""
    form = {**ACTIONS[path].form, "seen": "999999999"}
    answer = world.owner.post(f"/ui/{path.format(**world.things)}", data=form)
    assert answer.status_code == 412, answer.text
    assert "Nothing was done" in answer.text
    assert "not generation 999999999" in answer.text or "not 999999999" in answer.text
