"""Signing in, and the end of a session or a model while its page is open."""

from playwright.sync_api import expect

from tests.browser.accessibility import violations
from tests.browser.conftest import OpenPage
from tests.browser.sample import BIRDS, SCENES, Names
from tests.browser.served_plane import ServedPlane

Sample = tuple[ServedPlane, Names]

expect.set_options(timeout=30_000)


def test_one_signs_in_with_the_keyboard_and_goes_where_one_wanted(
    sample: Sample, open_page: OpenPage
) -> None:
    plane, names = sample
    page, record = open_page(plane, signed_in=False)
    page.goto(f"/ui/jobs/{names.held}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    page.get_by_label("Key").focus()
    page.keyboard.type("cmcl_not-a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    assert violations(page) == []
    page.get_by_label("Key").focus()
    page.keyboard.type(plane.key)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/ui/jobs/{names.held}")
    expect(page.get_by_role("heading", level=1)).to_have_text("returns")
    record.forgive("401")


def test_an_open_page_says_that_its_session_was_ended(
    own_sample: Sample, open_page: OpenPage
) -> None:
    plane, _ = own_sample
    key = plane.create_key("ben", "read")
    page, record = open_page(plane, cookies=plane.sign_in(key))
    page.goto(f"/ui/models/{SCENES.model}")
    name = page.locator("[popovertarget=menu]")
    expect(name).to_contain_text("ben")
    [revoked] = [
        item["id"] for item in plane.client.get("/v1/keys").json()["items"] if item["name"] == "ben"
    ]
    assert plane.client.request("DELETE", f"/v1/keys/{revoked}").status_code == 204
    # An event makes the page request its live parts.
    plane.post_dataset("later", SCENES.model)
    expect(page.locator("#connection")).to_contain_text("signed out")
    record.forgive("401")


def test_an_open_page_says_that_its_model_was_deleted(
    own_sample: Sample, open_page: OpenPage
) -> None:
    plane, _ = own_sample
    page, record = open_page(plane)
    page.goto(f"/ui/models/{BIRDS.model}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(BIRDS.model)
    assert plane.client.request("DELETE", f"/v1/models/{BIRDS.model}").status_code == 204
    expect(page.locator("#connection")).to_contain_text("deleted")
    record.forgive("404")
