"""All pages, for every test that holds for each of them, and for the pictures. A new page is one line in `PAGES`."""

from dataclasses import asdict, dataclass

from tests.browser.sample import Names


@dataclass(frozen=True)
class PageCase:
    """A page: its name, and its path below `/ui/`, with attributes of `Names` in braces.

    `has_picture`: in the documentation (`make pictures`); one page of each kind, which is looked at more closely.
    """

    name: str
    path: str
    signed_in: bool = True
    has_picture: bool = False

    def address(self, names: Names) -> str:
        """Its address with the names of the sample."""
        return "/ui/" + self.path.format(**asdict(names))


PAGES = (
    PageCase("login", "login", signed_in=False),
    PageCase("sessions", "sessions"),
    PageCase("overview", "", has_picture=True),
    PageCase("models", "models", has_picture=True),
    PageCase("new-model", "new", has_picture=True),
    PageCase("model", "models/{model}", has_picture=True),
    PageCase("model-with-held-candidate", "models/{reviewed}"),
    PageCase("model-with-an-older-live-version", "models/{moved_back}"),
    PageCase("model-without-versions", "models/{empty}"),
    PageCase("memory", "models/{model}/memory", has_picture=True),
    PageCase("compare", "models/{model}/compare?before=2&after=7"),
    PageCase("capacity", "models/{model}/capacity", has_picture=True),
    PageCase("graph", "models/{model}/graph", has_picture=True),
    PageCase("version", "models/{model}/versions/7", has_picture=True),
    PageCase("memory-without-versions", "models/{empty}/memory"),
    PageCase("capacity-without-versions", "models/{empty}/capacity"),
    PageCase("capacity-of-solved-heads", "models/{reviewed}/capacity"),
    PageCase("graph-without-versions", "models/{empty}/graph"),
    PageCase("version-first", "models/{model}/versions/1"),
    PageCase("promote", "models/{model}/promote?version=6", has_picture=True),
    PageCase("rollback", "models/{model}/rollback"),
    PageCase("promote-live", "models/{model}/promote?version=7"),
    PageCase("retire", "models/{model}/versions/2/retire"),
    PageCase("jobs", "jobs", has_picture=True),
    PageCase("jobs-failed", "jobs?state=failed"),
    PageCase("job-running", "jobs/{running}", has_picture=True),
    PageCase("job-waiting", "jobs/{waiting}"),
    PageCase("job-held", "jobs/{held}"),
    PageCase("candidate-held", "jobs/{held}/candidate", has_picture=True),
    PageCase("candidate-rejected", "jobs/{rejected}/candidate"),
    PageCase("cancel", "jobs/{running}/cancel"),
    PageCase("retry", "jobs/{failed}/retry"),
    PageCase("approve", "jobs/{held}/approve"),
    PageCase("reject", "jobs/{held}/reject"),
    PageCase("job-failed", "jobs/{failed}", has_picture=True),
    PageCase("job-log", "jobs/{running}/log?attempt=1"),
    PageCase("job-rejected", "jobs/{rejected}"),
    PageCase("datasets", "datasets", has_picture=True),
    PageCase("dataset", "datasets/{dataset}", has_picture=True),
    PageCase("dataset-rejected-rows", "datasets/{dataset}/rejected-rows"),
    PageCase("seal", "datasets/{open_dataset}/seal"),
    PageCase("post-dataset", "models/{model}/post", has_picture=True),
    PageCase("try", "try?model={model}"),
    PageCase(
        "try-two-versions",
        "try?model={model}&where=dataset:{dataset}&modality=image&row=0&version=6&other=7",
        has_picture=True,
    ),
    PageCase("collections", "collections"),
    PageCase("collection", "collections/{collection}", has_picture=True),
    PageCase("dataset-open", "datasets/{open_dataset}"),
    PageCase("seal-sealed", "datasets/{dataset}/seal"),
    PageCase("events", "events", has_picture=True),
    PageCase("keys", "keys"),
    PageCase("revoke", "keys/{key}/revoke"),
    PageCase("webhooks", "webhooks", has_picture=True),
    PageCase("webhook", "webhooks/{webhook}"),
    PageCase("delete-webhook", "webhooks/{webhook}/delete"),
)
