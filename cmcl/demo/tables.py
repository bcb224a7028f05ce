"""Result tables of the demo."""

from rich.table import Table

from cmcl.demo.figures import StreamFigures, backward_transfer


def version_table(figures: StreamFigures, seconds_to_live: list[float]) -> Table:
    """Table of versions: recall, backward transfer, drift and time to live."""
    table = Table(
        title="What each version learned, and what the earlier datasets lost",
        caption="R@1: the nearest row has the query's label, or is its partner where rows have none; "
        "R@10: its partner is among the ten nearest",
    )
    table.add_column("#")
    table.add_column("dataset", no_wrap=True)
    for heading in ("R@1", "R@10", "BWT R@1", "BWT R@10", "drift", "to live"):
        table.add_column(heading, justify="right")
    for index, name in enumerate(figures.names):
        table.add_row(
            str(index + 1),
            name,
            _percent(figures.at_1[index][index]),
            _percent(figures.at_10[index][index]),
            _points(backward_transfer(figures.at_1[: index + 1])),
            _points(backward_transfer(figures.at_10[: index + 1])),
            f"{max(figures.drift[index], default=0.0):.3f}",
            f"{seconds_to_live[index]:.1f} s",
        )
    return table


def comparison_table(protected: StreamFigures, unprotected: StreamFigures) -> Table:
    """Table of the stream with and without protection."""
    table = Table(title="The same stream with and without protection")
    table.add_column("final, mean over datasets")
    for heading in ("protected", "unprotected"):
        table.add_column(heading, justify="right")
    ours, theirs = protected.summary(), unprotected.summary()
    for label, key in (("R@1", "recall_at_1"), ("R@10", "recall_at_10")):
        table.add_row(label, _percent(ours[key]), _percent(theirs[key]))
    for label, key in (("BWT R@1", "bwt_recall_at_1"), ("BWT R@10", "bwt_recall_at_10")):
        table.add_row(label, _points(ours[key]), _points(theirs[key]))
    table.add_row(
        "largest drift of old scores",
        f"{protected.max_drift:.3f}",
        f"{unprotected.max_drift:.3f}",
    )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
