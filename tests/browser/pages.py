"""All pages, for every test that holds for each of them, and for the pictures. A new page is one line in `PAGES`."""

from dataclasses import asdict, dataclass

from tests.browser.sample import Names


@dataclass(frozen=True)
class PageCase:
    """A page: its name, and its path below `/ui/`, with attributes of `Names` in braces.

    `has_picture`: in the documentation (`make pictures`); one page of each kind, which is looked at more closely.
    `is_variant`: another case shows the same template, so that keyboard, scripts and widths are not looked at again.
    """

    name: str
    path: str
    signed_in: bool = True
    has_picture: bool = False
    is_variant: bool = False

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
    PageCase("model-with-held-candidate", "models/{reviewed}", is_variant=True),
    PageCase("model-with-an-older-live-version", "models/{moved_back}", is_variant=True),
    PageCase("model-without-versions", "models/{empty}"),
    PageCase("memory", "models/{model}/memory", has_picture=True),
    PageCase("compare", "models/{model}/compare?before=2&after=7&dataset={dataset}"),
    PageCase("version", "models/{model}/versions/7", has_picture=True),
    PageCase("memory-without-versions", "models/{empty}/memory", is_variant=True),
    PageCase("version-first", "models/{model}/versions/1", is_variant=True),
    PageCase("promote", "models/{model}/promote?version=6", has_picture=True),
    PageCase("rollback", "models/{model}/rollback", is_variant=True),
    PageCase("promote-live", "models/{model}/promote?version=7", is_variant=True),
    PageCase("jobs", "jobs", has_picture=True),
    PageCase("jobs-failed", "jobs?state=failed", is_variant=True),
    PageCase("job-running", "jobs/{running}", has_picture=True),
    PageCase("job-waiting", "jobs/{waiting}", is_variant=True),
    PageCase("candidate-held", "jobs/{held}", has_picture=True),
    PageCase("cancel", "jobs/{running}/cancel"),
    PageCase("retry", "jobs/{failed}/retry", is_variant=True),
    PageCase("approve", "jobs/{held}/approve", is_variant=True),
    PageCase("reject", "jobs/{held}/reject", is_variant=True),
    PageCase("job-failed", "jobs/{failed}", has_picture=True),
    PageCase("job-log", "jobs/{running}/log?attempt=1"),
    PageCase("job-rejected", "jobs/{rejected}", is_variant=True),
    PageCase("datasets", "datasets", has_picture=True),
    PageCase("dataset", "datasets/{dataset}", has_picture=True),
    PageCase("post-dataset", "models/{model}/post", has_picture=True),
    PageCase("try", "try?model={model}", is_variant=True),
    PageCase(
        "try-two-versions",
        "try?model={model}&where=dataset:{dataset}&modality=image&row=0&version=6&other=7",
        has_picture=True,
    ),
    PageCase("collections", "collections"),
    PageCase("collection", "collections/{collection}", has_picture=True),
    PageCase("dataset-open", "datasets/{open_dataset}", is_variant=True),
    PageCase("events", "events", has_picture=True),
)
