"""Every action of the page: the scopes it needs, and a form that fits."""

from dataclasses import dataclass, field

from service.core.principal import Scope

WRITE, TRAIN, ADMIN, EMBED = Scope.WRITE, Scope.TRAIN, Scope.ADMIN, Scope.EMBED


@dataclass(frozen=True)
class Action:
    """The scope that an action needs besides `read`, and its form.

    `has_page`: whether a page asks for confirmation at its address, with the query, about that job.
    `needs_read`: whether it shows what the scope `read` is for.
    """

    scope: Scope
    form: dict[str, str] = field(default_factory=dict)
    has_page: bool = True
    query: str = ""
    job: str = "job"
    needs_read: bool = True


# In a form that creates something: of one page.
ONCE = "0123456789abcdefABCD-_"
_DECISION = {"seen": "0", "reason": "because"}
_DATASET = {"name": "x", "first": "image", "second": "text", "uploads": "up-0123456789ab"}
_VERSION = {"seen": "0", "version": "1"}

# By path below /ui/, with the names of things in braces.
ACTIONS: dict[str, Action] = {
    "jobs/{job}/cancel": Action(TRAIN, {"seen": "0"}),
    "jobs/{job}/retry": Action(TRAIN, {"seen": "0"}),
    "jobs/{job}/approve": Action(TRAIN, _DECISION, job="held"),
    "jobs/{job}/reject": Action(TRAIN, _DECISION, job="held"),
    "datasets/{dataset}/seal": Action(WRITE, {"seen": "0"}),
    "models/{model}/promote": Action(TRAIN, _VERSION, query="?version=1"),
    "models/{model}/rollback": Action(TRAIN, {"seen": "0"}),
    "models/{model}/versions/{version}/retire": Action(ADMIN, {"seen": "0"}),
    "models/{model}/post": Action(WRITE, _DATASET),
    "try/file": Action(EMBED, {"x": "y"}, has_page=False),
    "keys": Action(
        ADMIN, {"once": ONCE, "name": "x", "scopes": "embed"}, has_page=False, needs_read=False
    ),
    "keys/{key}/revoke": Action(ADMIN, needs_read=False),
    "webhooks": Action(
        ADMIN, {"once": ONCE, "url": "https://example.com"}, has_page=False, needs_read=False
    ),
    "webhooks/{webhook}/test": Action(ADMIN, has_page=False, needs_read=False),
    "webhooks/{webhook}/delete": Action(ADMIN, needs_read=False),
}
ABOUT_ONE_THING = [path for path in ACTIONS if "{" in path]
WITH_REVISION = [path for path, action in ACTIONS.items() if "seen" in action.form]
# Actions on the session itself need no scope.
OPEN = {"login", "logout", "sessions/{session}/end"}
# Routes of /v1 that a script uses with the session.
OF_SCRIPTS = {
    "v1/uploads",
}
