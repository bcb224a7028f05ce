"""Every address of the page that a browser can open, the scope that it needs, and what it is about."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.core.principal import Scope
from tests.unit.service.page.actions import ACTIONS

READ = Scope.READ


@dataclass(frozen=True)
class Opened:
    """The scope of a page (None: any session), whether it needs no session, which job it is about, and a query."""

    scope: Scope | None = READ
    is_open: bool = False
    job: str = "job"
    query: str = ""
    # Whether the page shows objects of the endpoint, which decides what an owner may see.
    is_elsewhere: bool = False


PAGES: dict[str, Opened] = {
    "/ui/": Opened(),
    "/ui/models": Opened(),
    "/ui/models/{model}": Opened(),
    "/ui/jobs": Opened(),
    "/ui/jobs/{job}": Opened(),
    "/ui/jobs/{job}/log": Opened(job="held"),
    "/ui/jobs/{job}/candidate": Opened(job="held"),
    **{
        f"/ui/{path}": Opened(
            READ if action.needs_read else action.scope, job=action.job, query=action.query
        )
        for path, action in ACTIONS.items()
        if action.has_page
    },
    "/ui/models/{model}/capacity": Opened(),
    "/ui/models/{model}/graph": Opened(),
    "/ui/models/{model}/memory": Opened(),
    "/ui/models/{model}/versions/{version}": Opened(),
    "/ui/models/{model}/versions/{version}/manifest": Opened(),
    "/ui/datasets": Opened(),
    "/ui/datasets/{dataset}": Opened(),
    "/ui/datasets/{dataset}/rejected-rows": Opened(),
    "/ui/events": Opened(),
    "/ui/v1/uploads/{upload}": Opened(),
    "/ui/try": Opened(),
    "/ui/collections": Opened(),
    "/ui/collections/{collection}": Opened(is_elsewhere=True),
    "/ui/keys": Opened(Scope.ADMIN),
    "/ui/webhooks": Opened(Scope.ADMIN),
    "/ui/webhooks/{webhook}": Opened(Scope.ADMIN),
    "/ui/sessions": Opened(None),
    "/ui/oidc/start": Opened(None, is_open=True),
    "/ui/oidc/callback": Opened(None, is_open=True),
    "/ui/login": Opened(None, is_open=True),
    "/ui/static/{digest}/{name}": Opened(None, is_open=True),
    "/ui/stream": Opened(),
}
# Pages about one object, which belongs to one owner.
ABOUT_ONE_THING = [
    path
    for path, page in PAGES.items()
    if "{" in path and not page.is_open and not page.is_elsewhere
]
READABLE = [path for path, page in PAGES.items() if not page.is_open and path != "/ui/stream"]
# Of these, the ones that are no files to download.
DOCUMENTS = [
    path for path in READABLE if not path.endswith("/manifest") and not path.startswith("/ui/v1/")
]


def address(path: str, things: Mapping[str, str]) -> str:
    """The path with the names of things in it, and its query."""
    return path.format(**{**things, "job": things[PAGES[path].job]}) + PAGES[path].query
