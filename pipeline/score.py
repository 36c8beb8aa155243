"""Clean steps to `scores`: what a detector expects of each step of a day, and how far the step is from it."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import date, datetime, timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.config import WARM_UP, Dataset, Window, days_between
from pipeline.errors import ConfigError, GateRefusedError, NightsiftError
from pipeline.labels import contents, label_rates, last_known, with_label_rates
from pipeline.lake import Frames, Held, allow_open_files, quote
from pipeline.sequences import (
    BLOCK,
    Grid,
    Steps,
    Windows,
    ahead,
    any_channel,
    build_steps,
    by_size,
    cut_windows,
    entity_parts,
    make_grid,
    scatter,
    within,
)
from pipeline.state import State, day_states, read_state, states, write_state
from pipeline.suites import suite_digest
from pipeline.tables import Schema, clean_schema, drifts_schema, key_schema, partitions_schema, scores_schema
from pipeline.validate import REFUSED, input_digest, validate
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from models.detector import Detector
    from models.scores import View

log = logging.getLogger("nightsift.score")

PART = 1 << 18  # rows that are read, scored and staged at once, and
CHUNK = 4096  # windows that are laid out at once: both bound the memory and change no score
NAMED = 20  # entities that training did not know, by name
DRIFTED = 3.0  # deviations of the training data, by which the median of a day has moved
SILENCE = timedelta(days=7)  # an entity that was there within this time and is gone is reported as silent


@dataclass(frozen=True, slots=True)
class Shard:
    """A share of the entities of a night, and what it is scored with: the same for all shards of the night.

    entities: names and globs of the only entities to score; empty: all
    begin, end: it has those whose names, in order, are not before `begin` and are before `end`; None: no bound
    """

    day: str
    index: int
    count: int
    detector: str
    inputs: str
    entities: Sequence[str] = ()
    begin: str | None = None
    end: str | None = None

    def __post_init__(self) -> None:
        """Raise `NightsiftError` for one of several shards that has no bounds: it would score all entities."""
        if self.count > 1 and self.begin is None and self.end is None:
            raise NightsiftError(f"the shards of {self.day} were planned by an earlier version; run validate again")

    @property
    def place(self) -> str:
        """The folder where the night's results are staged; names all that decides them."""
        return f"{self.day}/{self.detector}-{self.inputs}{part_of('', self.entities).replace(' ', '-')}"

    @property
    def key(self) -> str:
        """Where the shard's summary is staged, after all its parts.

        The bounds are in the name, so that the result of a shard with other bounds is never taken for this one's.
        """
        bounds = hashlib.blake2b(json.dumps([self.begin, self.end]).encode(), digest_size=4).hexdigest()
        return f"{self.place}/{self.index}-of-{self.count}-{bounds}"

    @property
    def drifts(self) -> str:
        """Where its drifts are staged."""
        return f"{self.key}-drifts"

    def part(self, number: int) -> str:
        """Where its scores are staged, one part behind the other."""
        return f"{self.key}-{number}"


@dataclass(frozen=True, slots=True)
class Scored:
    """What was scored on a day: steps, how many of them anomalous, entities, and by which detector.

    promised: the false alarms per entity and day that its threshold was chosen for; None without a step
    unseen: how many of the entities were not there in training, and are judged on the scales of all
    unseen_names: those of them that come first in the alphabet
    drifting: how many features of entities have moved slowly
    """

    day: str
    steps: int
    anomalous: int
    entities: int
    detector: str
    promised: float | None = None
    unseen: int = 0
    unseen_names: list[str] = field(default_factory=list)
    drifting: int = 0


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the network expects of the steps of a `Steps`; NaN where a step is neither target nor warm-up.

    targets: `(n,)` bool, the steps to score
    scaled: `(n, channels)` float32, the channels after the scaler; NaN where not observed
    expected: `(n, channels)` float32, scaled likewise
    error: `(n, channels)` float32, observed minus expected, NaN where not observed
    """

    targets: NDArray[np.bool_]
    scaled: NDArray[np.float32]
    expected: NDArray[np.float32]
    error: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weighed:
    """Results for the steps of a `Steps`; NaN where a step was not a target.

    score: `(n,)` float64; contribution: `(n, channels)` float64, shares that add up to 1
    expected: as `Predicted` has it
    """

    score: NDArray[np.float64]
    contribution: NDArray[np.float64]
    expected: NDArray[np.float32]


def context_days(dataset: Dataset, day: date) -> list[date]:
    """The days whose `clean` rows a night reads: its own, last, and those before it that give context."""
    reach = dataset.day_bounds(day)[0] - max(dataset.lookback, SILENCE)
    first = dataset.day_of(reach) - dataset.label_reach
    return days_between(first, day)


def night_digest(ws: Workspace, day: date) -> str:
    """32 hex digits of all the input that decides a night's scores, but for the detector."""
    return night_digests(ws, [day])[day]


def night_digests(ws: Workspace, days: Iterable[date]) -> dict[date, str]:
    """`night_digest` of many days; the tables' metadata is read once for all of them."""
    landed = ws.lake.landed()
    said = contents(ws.lake.landed("labels", "content")) if ws.dataset.label_rates else {}
    inputs: dict[date, str] = {}
    digests = {}
    for day in days:
        context = context_days(ws.dataset, day)
        for d in context:
            inputs[d] = inputs.get(d) or input_digest(ws, d, landed)
        parts = [f"{d} {inputs[d]}" for d in context]
        parts += [f"labels {d} {said[d]}" for d in context if d in said and d <= last_known(ws.dataset, day)]
        text = "\n".join([ws.dataset.digest(), *parts])
        digests[day] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return digests


def config_digest(dataset: Dataset) -> str:
    """16 hex digits of what decides a night's scores beside its data and the detector: the YAML and the suite."""
    return hashlib.sha256(f"{dataset.digest()} {suite_digest(dataset)}".encode()).hexdigest()[:16]


def stale_days(ws: Workspace, first: date, last: date | None = None) -> list[date]:
    """The days to score tonight, in order: the night's own, `first` to `last`, and those before that are out of date.

    That is a day that was scored and whose data have changed since, or whose incidents were not made of its scores, as
    its night was killed in between; one that the gate refused and whose file was mended; and one of the last week that
    has landed and was never scored, as no night ran or it failed, once nights have begun. A day that the gate refuses
    as it is waits for its file to be mended. A change of the YAML or the suite concerns the days of the last week
    alone: those before are left to a backfill.
    """
    last = last or first
    tonight = set(days_between(first, last))
    landed, known = ws.lake.landed(), states(ws)
    done, refused = _inputs(known, "score"), _inputs(known, REFUSED)
    begun = min(done, default=first)
    missed = {day for day in landed["day"].unique() if begun <= day < first <= day + SILENCE}
    mended = {day for day in refused if day >= begun}
    now, config = night_digests(ws, done), config_digest(ws.dataset)
    alike = set(known.filter(pl.col("step") == "score", pl.col("config_digest") == config)["day"])
    changed = {day for day, digest in now.items() if digest != done[day] and (day in alike or first - day <= SILENCE)}
    key = ["day", "input_digest", "detector_version"]
    found = known.filter(pl.col("step") == "incidents").select(key)
    changed |= set(known.filter(pl.col("step") == "score").join(found, on=key, how="anti")["day"])
    waiting = {day for day, digest in refused.items() if digest == input_digest(ws, day, landed)}
    return sorted(tonight | ((changed | (missed | mended) - {*done}) - waiting))


def _inputs(known: pl.DataFrame, step: str) -> dict[date, str]:
    """What `step` made each day from, of the records `known`."""
    return dict(known.filter(pl.col("step") == step).select("day", "input_digest").iter_rows())


def matching(entities: Sequence[str], names: Iterable[str]) -> list[str]:
    """Those of `names`, sorted, that one of `entities` (names and globs) fits; all where `entities` is empty."""
    exact, globs = set(entities), [each for each in entities if set(each) & set("*?[")]
    return sorted(
        name for name in set(names)
        if not entities or name in exact or any(fnmatchcase(name, each) for each in globs)
    )  # fmt: skip


def part_of(step: str, entities: Sequence[str]) -> str:
    """Under which step the table `partitions` has what `step` did with some entities of a day alone."""
    if not entities:
        return step
    told = hashlib.blake2b("\n".join(sorted(set(entities))).encode(), digest_size=6).hexdigest()
    return f"{step} of {told}"


def parts(states: dict[str, State]) -> list[State]:
    """What was scored of a day, of some entities alone, since it was last scored wholly; `states` is all of the day."""
    return [state for step, state in sorted(states.items()) if step.startswith(PART_SCORED)]


PART_SCORED = "score of "
PART_STEPS = f"(step LIKE '{PART_SCORED}%' OR step LIKE 'incidents of %')"


def prepare(ws: Workspace, day: date) -> list[str]:
    """Validate the days of a night's context that are not valid yet; the reasons of those that were refused.

    Only the refusal of the night's own day is raised: an earlier day that the gate refused is missing context. Raises
    `NightsiftError` where a file of these days' tables is cut off.
    """
    refused, days = [], context_days(ws.dataset, day)
    ws.lake.require_whole(days[0], day)
    for d in days:
        try:
            validate(ws, d)
        except GateRefusedError as error:
            if d == day:
                raise
            refused.append(str(error))
            log.warning("%s: no context from %s: %s", ws.dataset.name, d, error)
    return refused


def plan_shards(ws: Workspace, day: date, asked: str = "", entities: Sequence[str] = ()) -> list[Shard]:
    """Validate a night's days, and plan its shards; they fix detector and input, so that no two shards can disagree.

    asked: the version of the detector, as `pipeline.tracking.version` takes it; empty: the champion
    entities: names and globs of the only entities to score; empty: all

    Raises `GateRefusedError` where the gate refuses the day.
    """
    from pipeline import tracking

    # The digest is taken before the days are validated: rows that land in between make the night out of date.
    inputs = night_digest(ws, day)
    prepare(ws, day)
    version = tracking.version(ws, asked) if asked else tracking.champion(ws)
    bounds = [None, *_bounds(ws, day, entities), None]
    count = len(bounds) - 1
    return [Shard(str(day), i, count, version.label, inputs, tuple(entities), *bounds[i : i + 2]) for i in range(count)]


def _bounds(ws: Workspace, day: date, entities: Sequence[str]) -> list[str]:
    """The names between which the night's entities are divided, so that each shard has about as many rows.

    No more than there are entities for: then there are fewer shards than the YAML allows.
    """
    if ws.dataset.shards == 1:
        return []
    counts = _context(ws, day).group_by("entity").len().sort("entity").collect(engine="streaming")
    counts = counts.filter(pl.col("entity").is_in(matching(entities, counts["entity"])))
    return bounds_between(counts, ws.dataset.shards)


def bounds_between(counts: pl.DataFrame, shards: int) -> list[str]:
    """The names that divide the entities of `counts` (entity, len; in order) into at most so many shards."""
    rows = pl.col("len").cast(pl.Int64)  # what Polars counts in would overflow at some ten million rows
    # An entity's rows are of the shard in which the middle one of them falls.
    share = (2 * rows.cum_sum() - rows) * shards // (2 * rows.sum())
    return counts.group_by(share.alias("share"), maintain_order=True).agg(pl.first("entity"))["entity"].to_list()[1:]


def score_shard(ws: Workspace, shard: Shard) -> Scored:
    """Score the shard's entities on its day and stage the result; nothing is visible in `scores` yet.

    By the version that was planned for the night, whoever became champion meanwhile. Some entities at a time are read,
    scored and staged, so that the memory that it takes does not grow with the shard.
    """
    from pipeline import tracking

    detector = load_detector(tracking.version(ws, shard.detector).folder)
    day = date.fromisoformat(shard.day)
    rates = label_rates(ws, ws.dataset.day_of(_reach(ws.dataset, day)), day)
    labelled = (with_label_rates(part, rates, ws.dataset) for part in entity_parts(_context(ws, day, shard), PART))
    tracking.log_devices(ws.dataset.name)
    tonight = pl.col("event_time").is_between(*ws.dataset.day_bounds(day), "left")
    frames = (score_frame(detector, part, ws.dataset, tonight) for part in ahead(labelled))
    return stage_shard(ws, shard, detector, frames)


def stage_shard(ws: Workspace, shard: Shard, detector: "Detector", frames: Iterable[pl.DataFrame]) -> Scored:
    """Stage what `detector` has scored of the shard: parts, drifts, and last, so that it is whole, what it came to."""
    sums, drifts = [], []
    for number, frame in enumerate(frames):
        ws.lake.stage(shard.part(number), frame.with_columns(pl.lit(shard.detector).alias("detector_version")))
        drifts.append(slow_drifts(detector, frame, ws.dataset))
        sums.append(_summary(frame, shard, detector, len(drifts[-1])))
    ws.lake.stage(shard.drifts, pl.concat(drifts))
    whole = together(sums)
    ws.lake.stage(shard.key, pl.DataFrame({"parts": [len(sums)], "scored": [json.dumps(asdict(whole))]}))
    return whole


def together(sums: Sequence[Scored]) -> Scored:
    """What was scored of one day in all, of what was scored of entities of it; of no entity twice."""
    added = ("steps", "anomalous", "entities", "unseen", "drifting")
    return replace(
        sums[0],
        promised=next((each.promised for each in sums if each.promised is not None), None),
        unseen_names=sorted(name for each in sums for name in each.unseen_names)[:NAMED],
        **{name: sum(getattr(each, name) for each in sums) for name in added},
    )


@lru_cache(maxsize=2)
def load_detector(folder: Path) -> "Detector":
    """The detector in `folder`; loaded (and its network compiled) once for many nights in one process.

    Raises `ConfigError` where an earlier version wrote it.
    """
    from models.detector import Detector

    try:
        return Detector.load(folder)
    except ValueError as error:
        raise ConfigError(f"{error}; train a new one with nightsift train") from error


def scan_clean(ws: Workspace, first: date, last: date, shard: Shard | None = None) -> pl.LazyFrame:
    """`clean` of the days from `first` to `last`, of the shard's entities, without `day`."""
    rows = ws.lake.scan("clean", clean_schema(ws.dataset), first, last).drop("day")
    if shard is None:
        return rows
    rows = rows.filter(within("entity", shard.begin, shard.end))
    if shard.entities:
        names = rows.select("entity").unique().collect(engine="streaming")["entity"]
        rows = rows.filter(pl.col("entity").is_in(matching(shard.entities, names)))
    return rows


def _context(ws: Workspace, day: date, shard: Shard | None = None) -> pl.LazyFrame:
    """The rows that the scoring of `day`, or of a shard of it, reads."""
    reach = _reach(ws.dataset, day)
    return scan_clean(ws, ws.dataset.day_of(reach), day, shard).filter(pl.col("event_time") >= reach)


def _reach(dataset: Dataset, day: date) -> datetime:
    return dataset.day_bounds(day)[0] - dataset.lookback


def publish(ws: Workspace, shards: list[Shard]) -> Scored:
    """Commit the staged shards of one night to `scores`, all at once.

    Raises `NightsiftError` where a shard is missing, unless this very night was published already.
    """
    allow_open_files()
    with ExitStack() as opened:
        return _publish(ws, shards, [_staged(ws, shard, opened) for shard in shards])


@dataclass(frozen=True, slots=True)
class _Staged:
    """A shard's result: what it came to, its drifts, and its parts, held until they are read."""

    scored: Scored
    drifts: pl.DataFrame
    parts: list[Held]


def _staged(ws: Workspace, shard: Shard, opened: ExitStack) -> _Staged | None:
    """The shard's result; None unless all of it is there: another run of the same night may remove it."""
    told, drifts = ws.lake.staged(shard.key), ws.lake.staged(shard.drifts)
    if told is None or drifts is None:
        return None
    held = [ws.lake.hold(shard.part(number)) for number in range(told["parts"].item())]
    parts = [part for part in held if part is not None]
    for part in parts:
        opened.callback(part.close)
    return _Staged(Scored(**json.loads(told["scored"].item())), drifts, parts) if len(parts) == len(held) else None


def _publish(ws: Workspace, shards: Sequence[Shard], found: Sequence[_Staged | None]) -> Scored:
    first = shards[0]
    day = date.fromisoformat(first.day)
    whole = [staged for staged in found if staged is not None]
    if len(whole) < len(shards):
        if _published(ws, first):
            ws.lake.unstage(first.place)  # what this run staged after the other one had removed the rest
            return read_scored(ws, day, first.entities)
        missing = ", ".join(f"{s.index} of {s.count}" for s, part in zip(shards, found, strict=True) if part is None)
        raise NightsiftError(f"{ws.dataset.name} {day}: shard {missing} was not scored; run the night again")
    moved = pl.concat([staged.drifts for staged in whole]).sort("entity", "feature")
    moved = moved.with_columns(pl.lit(first.detector).alias("detector_version"))
    held, summary = [part for staged in whole for part in staged.parts], together([staged.scored for staged in whole])
    commit = _publish_part if first.entities else _publish_whole
    commit(ws, first, held, moved, summary)
    ws.lake.unstage(first.place)
    return summary


def _rows(ws: Workspace, held: Sequence[Held]) -> Iterator[pl.DataFrame]:
    """The staged rows as `scores` has them, part by part, in order of entity and event time."""
    columns = [name for name in scores_schema(ws.dataset) if name != "day"]
    return (part.read(columns) for part in held)


def _publish_whole(ws: Workspace, night: Shard, held: Sequence[Held], moved: pl.DataFrame, summary: Scored) -> None:
    """Replace the day's rows; its record says of which input they are once they all stand there."""
    day = date.fromisoformat(night.day)
    record = State(day, "score", "", config_digest(ws.dataset), night.detector, asdict(summary))
    write_state(ws, record)
    if parts(day_states(ws, day)):
        # Before the scores: a part that another process commits meanwhile is recorded once more after them.
        ws.lake.replace("partitions", day, pl.DataFrame(schema=partitions_schema()), where=PART_STEPS)
    ws.lake.replace("drifts", day, moved, detector=night.detector)
    ws.lake.replace("scores", day, lambda: _rows(ws, held), detector=night.detector)
    write_state(ws, replace(record, input_digest=night.inputs))


def _publish_part(ws: Workspace, night: Shard, held: Sequence[Held], moved: pl.DataFrame, summary: Scored) -> None:
    """Replace the rows of the night's entities alone; the day's record says so before and after, whoever else writes.

    The record of the whole day stays what it was, but for what it counts.
    """
    day = date.fromisoformat(night.day)
    told = {**asdict(summary), "only": sorted(set(night.entities))}
    record = State(day, part_of("score", night.entities), "", config_digest(ws.dataset), night.detector, told)
    write_state(ws, record)
    scored = {name for part in held for name in part.read(["entity"])["entity"].unique()}
    _replace_part(ws, night, "drifts", drifts_schema(), moved, set(moved["entity"]))
    _replace_part(ws, night, "scores", scores_schema(ws.dataset), lambda: _rows(ws, held), scored)
    write_state(ws, replace(record, input_digest=night.inputs))
    _count_again(ws, day)


def _replace_part(
    ws: Workspace, night: Shard, table: str, schema: Schema, rows: pl.DataFrame | Frames, new: set[str]
) -> None:
    """Replace what `table` has of the night's entities by `rows`, in which `new` are."""
    day = date.fromisoformat(night.day)
    there = ws.lake.scan(table, schema, day, day).select("entity").unique().collect(engine="streaming")["entity"]
    names = matching(night.entities, {*there, *new})
    if names:
        ws.lake.replace(table, day, rows, where=among(names), detector=night.detector)


def among(names: Sequence[str]) -> str:
    """A SQL predicate for the rows of these entities."""
    return f"entity IN ({', '.join(map(quote, names))})"


def _count_again(ws: Workspace, day: date) -> None:
    """Let the record of a day that was scored wholly count what stands in its tables now."""
    state = read_state(ws, day, "score")
    if state is None:
        return
    drifts = ws.lake.scan("drifts", drifts_schema(), day, day).collect()
    counts = {**state.counts, **count_scores(ws, day), "drifting": len(drifts)}
    if counts != state.counts:
        write_state(ws, replace(state, counts=counts))


def count_scores(ws: Workspace, day: date) -> dict[str, int]:
    """How many `steps` `scores` has of `day`, how many of them are `anomalous`, and of how many `entities`."""
    rows = ws.lake.scan("scores", scores_schema(ws.dataset), day, day)
    each = rows.group_by("entity").agg(pl.len().alias("steps"), pl.col("is_anomaly").sum().alias("anomalous"))
    sums = each.select(pl.col("steps", "anomalous").sum(), pl.len().alias("entities")).collect(engine="streaming")
    return {name: int(value) for name, value in sums.row(0, named=True).items()}


def _published(ws: Workspace, shard: Shard) -> bool:
    state = read_state(ws, date.fromisoformat(shard.day), part_of("score", shard.entities))
    return state is not None and (state.input_digest, state.detector_version) == (shard.inputs, shard.detector)


def read_scored(ws: Workspace, day: date, entities: Sequence[str] = ()) -> Scored:
    """What was last published for `day`, or for `entities` of it alone; raises `NightsiftError` where nothing was.

    The day as a whole takes the place of what was published of it before, then also for `entities`.
    """
    state = read_state(ws, day, part_of("score", entities)) or read_state(ws, day, "score")
    if state is None:
        raise NightsiftError(f"{ws.dataset.name} {day} is not scored; run: nightsift score {ws.dataset.name}")
    return Scored(**{name: value for name, value in state.counts.items() if name != "only"})


def _summary(frame: pl.DataFrame, shard: Shard, detector: "Detector", drifting: int) -> Scored:
    names = frame["entity"].unique().sort()
    unseen = [name for name in names if name not in detector.scaler.entities]
    return Scored(
        shard.day, len(frame), int(frame["is_anomaly"].sum()), len(names), shard.detector,
        detector.threshold.budget if len(frame) else None, len(unseen), unseen[:NAMED], drifting,
    )  # fmt: skip


def score_frame(detector: "Detector", clean: pl.DataFrame, dataset: Dataset, targets: pl.Expr) -> pl.DataFrame:
    """The rows of `clean` for which `targets` holds, scored: the columns of `scores` but `day` and the version.

    In order of entity and event time. Raises `ConfigError` where the YAML's features are no longer those that the
    detector learned.
    """
    if tuple(dataset.channels) != detector.channels:
        raise ConfigError(
            f"{dataset.name}.yaml has the features {', '.join(dataset.channels)}, the detector was trained with "
            f"{', '.join(detector.channels)}; train again: nightsift train {dataset.name}"
        )
    frames = [_score_rows(member, rows, dataset, targets) for _, member, rows in by_member(detector, clean)]
    return frames[0] if len(frames) == 1 else pl.concat(frames).sort(*key_schema(dataset), maintain_order=True)


def by_member(detector: "Detector", clean: pl.DataFrame) -> Iterator[tuple[str, "Detector", pl.DataFrame]]:
    """The rows of `clean` by the detector that scores them, and its group; "" for `detector` itself.

    At least one, where there are no rows too.
    """
    groups: dict[str, list[str]] = {}
    for entity in clean["entity"].unique().sort() if detector.members else []:
        groups.setdefault(detector.member(entity) or "", []).append(entity)
    if len(groups) < 2:
        group = next(iter(groups), "")
        yield group, detector.members.get(group, detector), clean
        return
    for group, entities in sorted(groups.items()):
        yield group, detector.members.get(group, detector), clean.filter(pl.col("entity").is_in(entities))


def _score_rows(detector: "Detector", clean: pl.DataFrame, dataset: Dataset, targets: pl.Expr) -> pl.DataFrame:
    steps = build_steps(clean, dataset, detector.encodings)
    chosen = steps.frame.with_columns(targets.alias("target"))["target"].to_numpy()
    wanted = np.zeros(len(steps.values), bool)
    wanted[steps.step[chosen]] = True
    columns = _score_columns(detector, steps, judge(detector, steps, wanted), dataset)
    return pl.concat([steps.frame, columns[steps.step]], how="horizontal").filter(pl.Series(chosen))


def slow_drifts(detector: "Detector", frame: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """What has moved without being abnormal: entity, feature, observed and usual median, deviations between them.

    `frame` holds scored rows, as `score_frame` gives them. A sensor's feature has moved where the median of those that
    are not anomalous, at least a window of them, is three deviations or more from that of the training data. Entities
    that training did not know have nothing to have moved from.
    """
    channels = [] if dataset.kind == "transaction" else dataset.channels
    quiet = frame.filter(pl.col("score").is_not_null() & ~pl.col("is_anomaly"))
    medians = quiet.group_by("entity").agg(pl.len().alias("steps"), pl.col(f"observed_{c}" for c in channels).median())
    medians = medians.filter(pl.col("steps") >= dataset.window_length).sort("entity")
    found = [
        _moved(member, rows.filter(pl.col("entity").is_in(list(member.scaler.entities))), dataset, channel)
        for _, member, rows in by_member(detector, medians)
        for channel in channels
    ]
    schema = {name: kind for name, kind in drifts_schema().items() if name not in ("day", "detector_version")}
    return pl.concat([pl.DataFrame(schema=schema), *found]).sort("entity", "feature")


def _moved(detector: "Detector", medians: pl.DataFrame, dataset: Dataset, channel: str) -> pl.DataFrame:
    number, to_units = detector.channels.index(channel), units_of(dataset, channel)
    observed = medians[f"observed_{channel}"].cast(pl.Float64).to_numpy()
    rows = [detector.scaler.entities[name] for name in medians["entity"]]
    center, scale = detector.scaler.center[rows, number], detector.scaler.scale[rows, number]
    modelled = np.log1p(observed) if to_units is np.expm1 else observed
    names = medians.select("entity", feature=pl.lit(channel, dtype=pl.String))
    moved = names.with_columns(
        pl.Series("observed", observed),
        pl.Series("usual", to_units(center), dtype=pl.Float64),
        pl.Series("deviations", (modelled - center) / scale, dtype=pl.Float64),
    )
    return moved.filter(pl.col("deviations").is_finite() & (pl.col("deviations").abs() >= DRIFTED))


def judge(detector: "Detector", steps: Steps, targets: NDArray[np.bool_]) -> Weighed:
    """Score the steps where `targets` `(n,)` is True; each one's result depends on its own entity's steps only."""
    return weigh(detector, steps, predict(detector, steps, targets))


def predict(detector: "Detector", steps: Steps, targets: NDArray[np.bool_]) -> Predicted:
    """What the network expects of the targets, and of what a sensor's smoothing and slow baseline settle on."""
    scaled = detector.scaler.transform(steps.values, steps.observed, detector.scaler.rows(steps.entity, steps.names))
    length = WARM_UP * detector.config.steps * detector.config.rows if len(detector.usual) else 0
    expected = expected_values(detector, steps, scaled, warm_up(steps, targets, length))
    seen = np.where(steps.observed & np.isfinite(expected), scaled, np.float32(np.nan))
    return Predicted(targets, seen, expected, seen - expected)


def weigh(detector: "Detector", steps: Steps, predicted: Predicted) -> Weighed:
    """Scores from reconstruction errors: of a sensor by the detector's views, of events by its signals."""
    from models.scores import measure, most_surprised, surprise

    if detector.views:
        seen = [
            cells(detector, view, steps, smoothed_cells(view.alpha, steps, predicted, inputs=view.inputs))
            for view in detector.views
        ]
        score, contribution = np.empty(len(steps.values)), np.empty(steps.values.shape)
        for begin in range(0, len(score), BLOCK):
            part = slice(begin, begin + BLOCK)
            found = [measure(each[part], view) for view, each in zip(detector.views, seen, strict=True)]
            score[part], contribution[part] = most_surprised(found)
    else:
        score, contribution = surprise(event_signals(detector, steps, predicted), detector.signals)
    targets = predicted.targets
    return Weighed(
        np.where(targets, score, np.nan), np.where(targets[:, None], contribution, np.nan), predicted.expected
    )


def cells(detector: "Detector", view: "View", steps: Steps, smoothed: NDArray[np.float32]) -> NDArray[np.float32]:
    """The `smoothed` cells `(n, channels)` of a view, standardised by entity, less their slow baseline; NaN stays NaN.

    In the view without smoothing a channel that stands still for longer than is usual has what `stuck` says, where
    that is the larger; one that sends nothing for longer than is usual has it although it is not observed.
    """
    from models.scores import absences, repeats, slow_baseline, stuck

    rows = view.scaler.rows(steps.entity, steps.names)
    out = ((smoothed - view.scaler.center[rows]) / view.scaler.scale[rows]).astype(np.float32)
    out = out - slow_baseline(out, steps.sequence, view.tau)
    if view.alpha < 1:
        return out
    still = stuck(repeats(steps.values, steps.observed, steps.sequence), detector.usual[0])
    gone = absences(steps.observed, steps.sequence)
    out = np.where(still > np.abs(out), still, out)
    return np.where(gone > detector.usual[1], stuck(gone, detector.usual[1]), out)


def smoothed_cells(alpha: float, steps: Steps, predicted: Predicted, *, inputs: bool) -> NDArray[np.float32]:
    """The errors, or the scaled `inputs`, `(n, channels)`, smoothed along each sequence."""
    from models.scores import smooth

    return smooth(predicted.scaled if inputs else predicted.error, steps.sequence, alpha)


def event_signals(detector: "Detector", steps: Steps, predicted: Predicted) -> NDArray[np.float64]:
    """What the detector judges events by, `(n, channels + amounts)`, as `models.scores.signals` has it."""
    from models.scores import signals

    rows = detector.scaler.rows(steps.entity, steps.names)
    expected = detector.scaler.inverse(predicted.expected, rows).astype(np.float32)
    return signals(steps.values, expected, predicted.error, detector.signals.amounts, detector.signals.rates)


def warm_up(steps: Steps, targets: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """`targets`, and up to `length` positions before each sequence's first target: where smoothing gathers its past."""
    if length == 0 or not targets.any():
        return targets
    first = np.full(int(steps.sequence[-1]) + 1, np.iinfo(np.int64).max)
    last = np.full(len(first), -1)
    np.minimum.at(first, steps.sequence[targets], steps.position[targets])
    np.maximum.at(last, steps.sequence[targets], steps.position[targets])
    begin = first[steps.sequence]
    return (steps.position >= begin - np.minimum(length, begin)) & (steps.position <= last[steps.sequence])


def expected_values(
    detector: "Detector", steps: Steps, scaled: NDArray[np.float32], targets: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """`(n, channels)` float32: what the network expects of each target step; NaN elsewhere.

    Each group of the detector's channels is hidden in turn, so that no value helps to predict itself.
    """
    grid = make_grid(steps)
    windows = cut_windows(steps, grid, targets, Window(steps=detector.config.steps, rows=detector.config.rows))
    laid = lay(grid, scaled, steps.observed)
    out = np.full((len(grid), scaled.shape[1]), np.nan, np.float32)
    # A machine's windows are nearly all full; few more would be saved than every other shape costs to trace.
    sized = [windows] if len(detector.usual) else [part for _, part in by_size(windows)]
    for whole in sized:
        for part in whole.batches(CHUNK):
            scatter(part.target_index, _expect_targets(detector, part, *tensors(part, laid)), out)
    return out[grid.cell]


def _expect_targets(
    detector: "Detector",
    part: Windows,
    values: NDArray[np.float32],
    observed: NDArray[np.bool_],
    mask: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """What the network expects of the target segments, `(windows, rows, channels)`."""
    from models.autoencoder import expect, hide_group

    at_target = (np.arange(len(part)), part.target)
    if detector.groups == 0:
        return expect(detector.model, values, observed, mask)[at_target]
    channel_group = np.arange(detector.config.channels) % detector.groups
    out = np.empty((len(part), *values.shape[2:]), np.float32)
    for group in range(detector.groups):
        hidden = hide_group(part.target, values.shape, group, detector.groups)
        result = expect(detector.model, values, observed, mask, hidden=hidden)[at_target]
        out[..., channel_group == group] = result[..., channel_group == group]
    return out


INPUT_LIMIT = 10.0  # the network sees scaled values clipped to this; errors are taken from the values themselves


Laid = tuple[NDArray[np.float32], NDArray[np.bool_]]


def lay(grid: Grid, scaled: NDArray[np.float32], observed: NDArray[np.bool_]) -> Laid:
    """Values as the network takes them, and observed flags, laid on the grid `(cells, channels)`."""
    return grid.lay(np.clip(scaled, -INPUT_LIMIT, INPUT_LIMIT)), grid.lay(observed)


def tensors(windows: Windows, laid: Laid) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """`values` float32 and `observed` bool `(windows, steps, rows, channels)`, `mask` bool `(windows, steps, rows)`."""
    observed = windows.gather(laid[1])
    return windows.gather(laid[0]), observed, any_channel(observed)


def _score_columns(detector: "Detector", steps: Steps, judged: Weighed, dataset: Dataset) -> pl.DataFrame:
    rows = detector.scaler.rows(steps.entity, steps.names)
    expected = detector.scaler.inverse(judged.expected, rows)
    factor = detector.threshold.factor(steps.names)[steps.entity]
    threshold = detector.threshold.value * factor
    score = pl.Series("score", judged.score).fill_nan(None)
    columns = [
        score,
        pl.Series("p_value", detector.threshold.rarity.p_value(judged.score / factor)).fill_nan(None),
        pl.Series("threshold", threshold),
        (score > threshold).fill_null(value=False).alias("is_anomaly"),
    ]
    for c, name in enumerate(detector.channels):
        seen = steps.observed[:, c]
        to_units = units_of(dataset, name)
        columns += [
            pl.Series(f"observed_{name}", np.where(seen, to_units(steps.values[:, c].astype(np.float64)), np.nan)),
            pl.Series(f"expected_{name}", to_units(expected[:, c])),
            pl.Series(f"contribution_{name}", judged.contribution[:, c]),
        ]
    return pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))


def units_of(dataset: Dataset, channel: str) -> np.ufunc:
    """The function from a channel's modelled value back to what a person reads.

    Amounts, times, counts and sums were taken as log(1 + value), a ratio as the logarithm of ratios; a label rate stays
    a share, and a category the negative log of its share: the rarer, the higher.
    """
    for feature in dataset.features:
        if feature.name == channel:
            return np.expm1 if feature.log else np.positive
    kind = next(feature.kind for feature in dataset.sequence_features if feature.name == channel)
    return {"ratio_to_history": np.exp, "label_rate": np.positive}.get(kind, np.expm1)
