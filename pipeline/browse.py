"""Which incidents the incidents page shows: what is asked of it, and what fits in any nights of any datasets.

A question comes from an address and goes back into one, so that what is looked at can be kept and sent on. Everything
but `find` and `find_incident` is pure.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

import polars as pl

from pipeline.config import YEARS
from pipeline.errors import ConfigError, NightsiftError
from pipeline.lake import UNREADABLE
from pipeline.review import KINDS, OPEN, SAID, STATES, choose, read_reviewed
from pipeline.state import newest_day
from pipeline.tables import incidents_schema, verdicts_schema
from pipeline.workspace import Workspace

log = logging.getLogger("nightsift.page")

PAGE = 50  # incidents on a page
NIGHTS = 7  # nights that are shown where none are asked for: the latest, and those before it
MOST_NIGHTS = 400
SORTS = ("severity", "time")
_FOLDERS = re.compile(r"""(?<![\w./])(?:\w+:/)?/[^\s'"]*/""")  # in a sentence


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for; empty fields ask for everything.

    first, last: nights, both included; without them the latest `NIGHTS` of each dataset
    entity: a name, or a glob such as `pump-00*`
    least: the least severity; silences, which have none, do not fit then
    kind: one of `KINDS`; state: one of `STATES`
    sort: `severity` (open ones first) or `time` (latest first)
    page: from 1
    """

    dataset: str = ""
    first: date | None = None
    last: date | None = None
    entity: str = ""
    least: float | None = None
    kind: str = ""
    state: str = ""
    sort: str = "severity"
    page: int = 1

    def query(self, **changes: Any) -> str:
        """The question as the query of an address, with `changes`; what is as by default is left out."""
        asked, usual = replace(self, **changes), Question()
        names = (name for name in Question.__dataclass_fields__ if getattr(asked, name) != getattr(usual, name))
        return urlencode({name: _text(getattr(asked, name)) for name in names})


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def read_question(query: Mapping[str, str]) -> Question:
    """The question that an address asks; raises `ConfigError` for what no incident page can answer."""
    given = {name: value.strip() for name, value in query.items() if value.strip()}
    question = Question(
        dataset=given.get("dataset", ""),
        first=_day(given, "first"),
        last=_day(given, "last"),
        entity=given.get("entity", ""),
        least=_least(given),
        kind=_one_of(given, "kind", KINDS),
        state=_one_of(given, "state", STATES),
        sort=_one_of(given, "sort", SORTS) or "severity",
        page=_page(given),
    )
    if question.first and question.last:
        _check_nights(question.first, question.last)
    return question


def _day(given: Mapping[str, str], name: str) -> date | None:
    try:
        return bounded(date.fromisoformat(given[name])) if name in given else None
    except ValueError as error:
        raise ConfigError(f"{name} is a day such as 2026-01-31, not {given[name]!r}") from error


def bounded(day: date) -> date:
    """The day; raises `ConfigError` for one of a year that is none of `YEARS`: a calendar may end there."""
    if day.year not in YEARS:
        raise ConfigError(f"{day} is no day between {YEARS[0]}-01-01 and {YEARS[-1]}-12-31")
    return day


def _least(given: Mapping[str, str]) -> float | None:
    try:
        least = float(given["least"]) if "least" in given else None
    except ValueError as error:
        raise ConfigError(f"the least severity is a number such as 2.5, not {given['least']!r}") from error
    if least is not None and not math.isfinite(least):
        raise ConfigError(f"the least severity is a number such as 2.5, not {given['least']!r}")
    return least


def _one_of(given: Mapping[str, str], name: str, known: Sequence[str]) -> str:
    value = given.get(name, "")
    if value and value not in known:
        raise ConfigError(f"{name} is one of {', '.join(known)}, not {value!r}")
    return value


def _page(given: Mapping[str, str]) -> int:
    text = given.get("page", "1")
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise ConfigError(f"a page is a number from 1 on, not {text!r}")
    return int(text)


def _check_nights(first: date, last: date) -> None:
    nights = (last - first).days + 1
    if nights < 1:
        raise ConfigError(f"the first night, {first}, is after the last, {last}")
    if nights > MOST_NIGHTS:
        raise ConfigError(f"{first} to {last} are {nights:,} nights; at most {MOST_NIGHTS} are shown at once")


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to a question.

    incidents: all that fit, in order: the columns of the table, `dataset`, and state, note, reviewer, reviewed_at
    everything: all that fit, whichever state was asked for
    nights: the first and last night that were looked at; None where nothing was ever scored
    trouble: a sentence for each dataset that could not be read
    """

    question: Question
    incidents: pl.DataFrame
    everything: pl.DataFrame
    nights: tuple[date, date] | None
    trouble: tuple[str, ...] = ()

    @property
    def states(self) -> dict[str, int]:
        """How many there are in each state, whichever state was asked for."""
        return dict(self.everything.group_by("state").len().iter_rows())

    @property
    def pages(self) -> int:
        """How many pages there are; one even of nothing."""
        return max(math.ceil(len(self.incidents) / PAGE), 1)

    @property
    def page(self) -> int:
        """The page that is shown: the one that was asked for, or the last."""
        return min(self.question.page, self.pages)

    def shown(self) -> pl.DataFrame:
        """The incidents of the page that is shown."""
        return self.incidents.slice((self.page - 1) * PAGE, PAGE)

    def judged(self, dataset: str, incident: str) -> dict[str, Any] | None:
        """The incident, also where its verdict has taken it out of the state that was asked for; None without it."""
        one = self.everything.filter(dataset=dataset, incident_id=incident)
        return one.row(0, named=True) if len(one) else None

    def beside(self, dataset: str, incident: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The incidents before and after one of these, in their order; None where there is none."""
        mine = (pl.col("dataset") == dataset) & (pl.col("incident_id") == incident)
        places = self.incidents.select(mine.arg_true()).to_series()
        if places.is_empty():
            return None, None
        before, after = places[0] - 1, places[0] + 1
        return (
            self.incidents.row(before, named=True) if before >= 0 else None,
            self.incidents.row(after, named=True) if after < len(self.incidents) else None,
        )

    def first_open(self) -> dict[str, Any] | None:
        """The first of these on which there is no verdict; None where all are judged."""
        return next(self.incidents.filter(state=OPEN).head(1).iter_rows(named=True), None)


def find(question: Question, names: Iterable[str], opened: Callable[[str], Workspace]) -> Found:
    """The incidents of the datasets `names` that fit the question.

    `opened` gives a dataset's workspace. A dataset that cannot be read, or of which too many nights are asked for, is
    told in `trouble`, and does not keep the others from being shown.
    """
    frames, nights, trouble = [_nothing()], [], []
    for name in names:
        try:
            ws = opened(name)
            asked = nights_of(question, newest_day(ws, "incidents") if question.last is None else None)
            if asked is None:
                continue
            found = fitting(read_reviewed(ws, *asked), question)
        except NightsiftError as error:
            trouble.append(f"{name} is not shown: {for_visitors(error)}")
        except UNREADABLE:
            log.exception("The tables of %s could not be read", name)
            trouble.append(f"{name} is not shown: its tables could not be read; the API server's log says why")
        else:
            frames.append(found.with_columns(pl.lit(name).alias("dataset")).select(_nothing().columns))
            nights.append(asked)
    all_states = pl.concat(frames)
    mine = all_states.filter(state=question.state) if question.state else all_states
    return Found(
        question,
        ordered(mine, question.sort),
        all_states,
        (min(first for first, _ in nights), max(last for _, last in nights)) if nights else None,
        tuple(trouble),
    )


def for_visitors(error: NightsiftError) -> str:
    """What the error says, without the folders of the server; where it names some, the log has it whole."""
    told = _FOLDERS.sub("", str(error))
    if told != str(error):
        log.warning("%s", error)
    return told


def _nothing() -> pl.DataFrame:
    verdicts = verdicts_schema()
    said = {name: verdicts[name] for name in SAID}
    return pl.DataFrame(schema=incidents_schema() | {"state": pl.String} | said | {"dataset": pl.String})


def nights_of(question: Question, latest: date | None) -> tuple[date, date] | None:
    """The first and last night that are asked for, of a dataset whose latest is `latest`; None where there is none.

    Raises `ConfigError` for more than `MOST_NIGHTS` nights.
    """
    last = question.last or latest
    if last is None or (question.first and question.first > last):
        return None
    first = question.first or last - timedelta(days=NIGHTS - 1)
    _check_nights(first, last)
    return first, last


def fitting(reviewed: pl.DataFrame, question: Question) -> pl.DataFrame:
    """The incidents that fit the question's entity, least severity and kind, in their order."""
    chosen = choose(reviewed, [question.entity] if question.entity else (), question.least)
    return chosen.filter(kind=question.kind) if question.kind else chosen


def ordered(incidents: pl.DataFrame, sort: str) -> pl.DataFrame:
    """The incidents by `sort`; by severity, open ones are first, and what the calendar explains, or is silent, last."""
    names = pl.col("dataset"), pl.col("entity")
    if sort == "time":
        return incidents.sort("start", *names, descending=[True, False, False])
    planned = pl.col("reason").is_not_null()
    return incidents.sort(
        pl.col("state") != OPEN, planned, pl.col("severity"), pl.col("start"), *names,
        descending=[False, False, True, True, False, False], nulls_last=True,
    )  # fmt: skip


def find_incident(ws: Workspace, day: date, incident: str) -> dict[str, Any] | None:
    """One incident with its state, as its last day tells it; None where `day` has none with that id."""
    around = read_reviewed(ws, day - timedelta(days=1), day + timedelta(days=1))
    found = around.filter(pl.col("incident_id") == incident)
    return found.row(0, named=True) if len(found) else None
