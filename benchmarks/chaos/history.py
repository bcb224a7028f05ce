"""What clients did and saw, and what no correct system can have shown them.

Times are of one clock (`time.time`), since all clients are of one machine: what has ended before something else began was
before it, and everything else was at the same time.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from cmcl.contract.version import VersionManifest

# Between two products of the same vectors, in batches of different sizes.
_ROUNDING = 1e-4
# A promotion has the time of its row, which is written just before it is committed.
_CLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Posted:
    """A dataset that was accepted, and how its job has ended."""

    model: str
    dataset: str
    job: str
    state: str
    message: str


@dataclass(frozen=True)
class PointerSeen:
    """The live version, as a read or an acknowledged promotion returned it."""

    model: str
    began: float
    ended: float
    version: int
    generation: int


@dataclass(frozen=True)
class Answer:
    """An answer of the endpoint. `at_least`: the version that was asked for, or 0."""

    model: str
    began: float
    ended: float
    version: int
    at_least: int


@dataclass(frozen=True)
class Embedded:
    """The row of a modality under a version. Rows are those of the stream's held-out files."""

    model: str
    version: int
    modality: str
    row: int


@dataclass(frozen=True)
class Write:
    """A write of an item, or its removal (`number` None). `revision`: None without an acknowledgement."""

    item: str
    number: int | None
    revision: int | None


@dataclass(frozen=True)
class Hit:
    """A result of a search. `number`: of the write that it is from."""

    item: str
    number: int
    row: int
    score: float


@dataclass(frozen=True)
class Search:
    """A search with the row of a modality, which waited for the revision of a `write` and filtered by its number."""

    answer: Answer
    modality: str
    row: int
    write: Write
    hits: tuple[Hit, ...]


@dataclass
class History:
    """Events in the order in which each client met them; threads append to the lists."""

    posted: list[Posted] = field(default_factory=list)
    pointers: list[PointerSeen] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    vectors: dict[Embedded, list[float]] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    # Calls without an answer after the client's own repetitions: when, and the error.
    failures: list[tuple[float, str]] = field(default_factory=list)
    # What a client saw to be wrong at once.
    wrong: list[str] = field(default_factory=list)

    def add_vector(self, key: Embedded, vector: list[float]) -> None:
        """Keep the first answer of a version to a row; a different one is wrong."""
        known = self.vectors.setdefault(key, vector)
        if not _agree(known, vector):
            self.wrong.append(f"{key} was answered in two ways")


@dataclass(frozen=True)
class Promoted:
    """A generation of the pointer, as the control plane lists it at the end."""

    generation: int
    version: int
    at: float


@dataclass(frozen=True)
class Outcome:
    """What there is at the end. `items`: the number of the write that each item of the collection is from."""

    versions: Mapping[str, Sequence[VersionManifest]]
    promotions: Mapping[str, Sequence[Promoted]]
    live: Mapping[str, PointerSeen]
    items: Mapping[str, int]


_Event = TypeVar("_Event", PointerSeen, Answer)
# The vector of a row under a version, from the heads in the store.
Embed = Callable[[Embedded], list[float]]


def violations(history: History, outcome: Outcome, embed: Embed) -> list[str]:
    """Return what is wrong, a sentence each."""
    found = list(history.wrong)
    for model in outcome.versions:
        found += _one_version_for_each_dataset(history, outcome, model)
        found += _the_pointer_is_linearizable(history, outcome, model)
        found += _answers_are_of_live_versions_in_their_order(history, outcome, model)
    found += _vectors_are_of_the_versions_named(history, embed)
    found += _searches_are_of_one_version_and_see_the_write(history, embed)
    found += _acknowledged_writes_are_there(history, outcome)
    return found


def _one_version_for_each_dataset(history: History, outcome: Outcome, model: str) -> Iterator[str]:
    versions, lineage = outcome.versions[model], list[str]()
    for number, version in enumerate(versions, start=1):
        lineage.append(str(version.dataset))
        if (version.version, version.parent) != (number, number - 1 or None):
            yield f"{model}: version {version.version} with parent {version.parent} is number {number}"
        if [line.dataset for line in version.learned] != lineage:
            yield f"{model}@{number} has not learned what its parent has and its dataset"
    if len(set(lineage)) < len(lineage):
        yield f"{model}: a dataset was learned twice"
    jobs = {version.job for version in versions}
    for each in history.posted:
        if each.model == model and (each.job not in jobs or each.state != "published"):
            yield f"{model}: {each.dataset} was accepted and is lost: {each.state}, {each.message}"


def _the_pointer_is_linearizable(history: History, outcome: Outcome, model: str) -> Iterator[str]:
    version_of = {each.generation: each.version for each in outcome.promotions[model]}
    if sorted(version_of) != list(range(1, len(version_of) + 1)):
        yield f"{model}: the generations are {sorted(version_of)}"
    seen = [each for each in history.pointers if each.model == model] + [outcome.live[model]]
    for each in seen:
        if version_of.get(each.generation) != each.version:
            yield f"{model}: {each} is not what the list of promotions has"
    for before, at_least in _after(seen, lambda each: each.generation):
        if before.generation < at_least:
            yield f"{model}: {before} after generation {at_least} was seen"


def _answers_are_of_live_versions_in_their_order(
    history: History, outcome: Outcome, model: str
) -> Iterator[str]:
    """Each answer is given the earliest generation of its version that is not before one that was answered already."""
    promotions = sorted(outcome.promotions[model], key=lambda each: each.generation)
    given: dict[int, int] = {}

    def generation(answer: Answer) -> int:
        return given.get(id(answer), 0)

    answers = [each for each in history.answers if each.model == model]
    for answer, at_least in _after(answers, generation):
        if answer.version < answer.at_least:
            yield f"{model}: {answer} is of an earlier version than was asked for"
        possible = [
            each.generation
            for each in promotions
            if each.version == answer.version
            and each.generation >= at_least
            and each.at <= answer.ended + _CLOCK_SECONDS
        ]
        if possible:
            given[id(answer)] = possible[0]
        else:
            yield f"{model}: {answer} was not live then, after generation {at_least} was answered"


def _vectors_are_of_the_versions_named(history: History, embed: Embed) -> Iterator[str]:
    for key, vector in history.vectors.items():
        if not _agree(embed(key), vector):
            yield f"{key} is not what the heads of that version give"


def _searches_are_of_one_version_and_see_the_write(history: History, embed: Embed) -> Iterator[str]:
    for search in history.searches:
        answer, write = search.answer, search.write
        if {(hit.item, hit.number) for hit in search.hits} != {(write.item, write.number)}:
            yield f"{search} did not find what was written"
        query = embed(Embedded(answer.model, answer.version, search.modality, search.row))
        for hit in search.hits:
            item = embed(Embedded(answer.model, answer.version, search.modality, hit.row))
            score = sum(one * other for one, other in zip(query, item, strict=True))
            if abs(score - hit.score) > _ROUNDING:
                yield f"{search} has a score of another version than {answer.version}: {score}"


def _acknowledged_writes_are_there(history: History, outcome: Outcome) -> Iterator[str]:
    # One client writes an item, so its writes have an order. One without an acknowledgement may have happened.
    permitted: dict[str, set[int | None]] = defaultdict(lambda: {None})
    for write in history.writes:
        if write.revision is not None:
            permitted[write.item] = {write.number}
        else:
            permitted[write.item].add(write.number)
    for item, numbers in permitted.items():
        if outcome.items.get(item) not in numbers:
            yield f"item {item} is from write {outcome.items.get(item)}, not from {numbers}"
    for item in outcome.items.keys() - permitted.keys():
        yield f"item {item} was never written"


def _after(
    events: Sequence[_Event], value: Callable[[_Event], int]
) -> Iterator[tuple[_Event, int]]:
    """Yield events by their beginning, each with the largest value of those that had ended before, or 0."""
    ended = sorted(events, key=lambda each: each.ended)
    done = largest = 0
    for event in sorted(events, key=lambda each: each.began):
        while ended[done].ended < event.began:
            largest = max(largest, value(ended[done]))
            done += 1
        yield event, largest


def _agree(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) > 0 and all(
        abs(a - b) <= _ROUNDING for a, b in zip(one, other, strict=True)
    )
