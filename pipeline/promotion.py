"""Challenger and champion: how they compare, what may become champion, and the way back."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import binomtest, poisson

from pipeline import tracking
from pipeline.config import Dataset
from pipeline.errors import ConfigError, NightsiftError
from pipeline.labels import label_rates, with_label_rates
from pipeline.review import confirmed, dismissed
from pipeline.score import judge, load_detector, scan_clean, score_frame
from pipeline.sequences import Steps, build_steps
from pipeline.state import state_of, states
from pipeline.tracking import Version
from pipeline.train import (
    BEFORE,
    HOLDOUT,
    Evaluation,
    Learned,
    Trained,
    calibrator,
    count_alarms,
    evaluate,
    evaluate_members,
    over_factors,
    relative,
    together,
    weights_digest,
    within,
)
from pipeline.words import found_share
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from models.detector import Detector

log = logging.getLogger("nightsift.promotion")

CHANCE = 0.05  # what chance does as often as this, counts for nothing
TOLERANCE = 0.05  # how much less of the injected anomalies a challenger may find than the champion
DEAF = 0.5  # of what it finds at the budget: a challenger whose own threshold finds less has a wrong one
UNSEEN = 0.25  # of the holdout: where the champion has not learned from that much, it is compared on that alone
NO_HOLDOUT = (
    "there is no holdout to compare on: train on a longer stretch or raise training.holdout in the YAML, or promote it "
    "with nightsift promote"
)
NO_ANOMALIES = (
    "nothing tells whether it finds anomalies, as the holdout has room for none and analysts confirmed none: train on "
    "a longer stretch or raise training.holdout in the YAML, or promote it with nightsift promote"
)
TRIED = 3  # entities of each group that a detector is tried on before it may become champion


@dataclass(frozen=True, slots=True)
class Moved:
    """Which detector is champion now, and which was before (None: none was); labels."""

    before: str | None
    after: str


@dataclass(frozen=True, slots=True)
class Standing:
    """A detector beside another one, on the same steps.

    promised, realised: false incidents per entity and day, by its own threshold, on the holdout; alarms: how many
    equal: on the holdout with the threshold at the budget that both were given: false alarms, and what is found of
        the same injected anomalies
    confirmed, dismissed: for each stretch that an analyst judged, whether its own threshold calls it
    """

    label: str
    promised: float
    alarms: int
    equal: Evaluation
    confirmed: tuple[bool, ...]
    dismissed: tuple[bool, ...]

    @property
    def realised(self) -> float:
        """False incidents per entity and day on the holdout."""
        return self.alarms / self.equal.entity_days


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether the challenger may become champion, why, and both side by side: in Markdown, and as plain values."""

    better: bool
    reason: str
    table: str
    facts: dict[str, Any]


def decide(ws: Workspace, trained: Trained, say: Callable[[str], None] = log.info) -> Trained:
    """Make what was trained the challenger and, by the YAML's `training.promotion`, the champion.

    Whatever the rule, it is tried first: raises `NightsiftError` where it is broken.
    """
    rule, version = ws.dataset.training.promotion, tracking.registered(ws, number_of(trained.version))
    verify(ws, version)
    tracking.challenge(ws, version)
    promoted = rule == "auto" and trained.better
    if promoted:
        tracking.crown(ws, version)
    reason = f"{_OUTCOMES[rule][trained.better]}: {trained.reason}"
    tags = {"detector": version.label, "promoted": str(promoted).lower(), "promotion": reason}
    by = "rule" if rule == "auto" else "nobody yet"
    tracking.log_decision(ws, trained.run, version, {**tags, "decided_by": by})
    say(f"detector {version.label}: {reason}")
    return replace(trained, promoted=promoted, reason=reason)


_OUTCOMES = {  # by rule: of a worse challenger, and of one that is not
    "auto": ("refused", "promoted"),
    "human": ("waits for a person, who is advised to reject it", "waits for a person, who may well approve it"),
    "never": ("stays challenger, and should", "stays challenger, though it might be promoted"),
}


def log_answer(ws: Workspace, run: str, label: str, answer: Mapping[str, Any]) -> str:
    """Log what a person answered, in the words of Airflow's approval task; a sentence of it."""
    approved, user = answer["chosen_options"] == ["Approve"], answer.get("responded_by_user")
    name = (user["name"] or user["id"]) if user else "nobody in time"
    version = tracking.registered(ws, number_of(label))
    said = f"{'approved' if approved else 'rejected'} by {name}"
    tags = {"promoted": str(approved).lower(), "promotion": said, "decided_by": name}
    tracking.log_decision(ws, run, version, tags)
    return f"detector {label}: {said}"


def promote(ws: Workspace, number: str) -> Moved:
    """Make version `number` the champion.

    Raises `ConfigError` where there is no such version, and `NightsiftError` where it is broken.
    """
    version, now = tracking.registered(ws, number), tracking.current(ws)
    verify(ws, version)
    tracking.crown(ws, version)
    return Moved(now.label if now else None, version.label)


def way_back(ws: Workspace) -> tuple[Version, Version]:
    """The champion, and the one before it; raises `ConfigError` where there is none to go back to."""
    now, before = tracking.current(ws), tracking.former(ws)
    if now is None or not before:
        raise ConfigError(f"{ws.dataset.name} has no earlier champion to go back to")
    return now, tracking.registered(ws, before[-1])


def rollback(ws: Workspace, step: Moved | None = None) -> Moved:
    """Make the champion before the present one the champion again: one step back each time, to the first one.

    With `step` it is that step or nothing, so that it can be told to go twice: raises `NightsiftError` where the
    champion is neither what it goes from nor what it goes to.
    """
    at = tracking.current(ws)
    if step is not None and at is not None and at.label == step.after:
        return step
    now, back = way_back(ws)
    if step is not None and (now.label, back.label) != (step.before, step.after):
        raise NightsiftError(f"{ws.dataset.name}: the champion has changed to {now.label} meanwhile; nothing was done")
    verify(ws, back)
    tracking.uncrown(ws, back)
    return Moved(now.label, back.label)


def number_of(label: str) -> str:
    """The version's number in the registry."""
    return label.partition("-")[0]


def verify(ws: Workspace, version: Version) -> None:
    """Load the version back from the registry and score a piece of the newest day that it was made from.

    Raises `NightsiftError` where it cannot be loaded, is not what was registered, or gives scores that are not finite;
    `ConfigError` where its format is an earlier one or its features are not those of the YAML.
    """
    name = f"detector {version.label} of {ws.dataset.name}"
    with TemporaryDirectory(prefix="nightsift-") as scratch:
        try:
            detector = _load_back(ws, version, Path(scratch))
        except NightsiftError:
            raise
        except Exception as error:
            raise NightsiftError(
                f"{name} cannot be loaded back from the registry ({type(error).__name__}: {error}); the champion stays"
            ) from error
    if weights_digest(detector)[:8] != version.label.split("-")[1]:
        raise NightsiftError(f"{name} is not what was registered: its weights have changed; the champion stays")
    scored = _tried(ws, detector)
    seen = pl.any_horizontal(pl.col(f"observed_{channel}").is_not_null() for channel in detector.channels)
    good = pl.col("score").is_finite() & pl.col("threshold").is_finite()
    wrong = scored.filter(seen & ~good.fill_null(value=False))
    if len(wrong):
        raise NightsiftError(
            f"{name} gives {len(wrong):,} of {len(scored):,} steps no finite score or threshold; the champion stays"
        )


def _load_back(ws: Workspace, version: Version, scratch: Path) -> "Detector":
    from models.detector import Detector

    folder = tracking.fetch(ws, version.number, scratch)
    try:
        return Detector.load(folder)
    except ValueError as error:
        if "has format" in str(error):
            raise ConfigError(f"{error}; train a new one with nightsift train") from error
        raise


def _tried(ws: Workspace, detector: "Detector") -> pl.DataFrame:
    """Scores of a few entities of each group, on the newest clean day that begins before the detector's `to`."""
    day = newest_clean(ws, datetime.fromisoformat(detector.about["to"]))
    if day is None:
        raise NightsiftError(
            f"{ws.dataset.name} has no clean rows to try a detector on; run: nightsift validate {ws.dataset.name}"
        )
    start, end = ws.dataset.day_bounds(day)
    first = ws.dataset.day_of(start - ws.dataset.lookback)
    clean, tonight = scan_clean(ws, first, day), pl.col("event_time").is_between(start, end, "left")
    by_group: dict[str | None, list[str]] = {}
    for entity in clean.filter(tonight).select(pl.col("entity").unique().sort()).collect()["entity"]:
        by_group.setdefault(detector.member(entity), []).append(entity)
    tried = [entity for entities in by_group.values() for entity in entities[:TRIED]]
    part = clean.filter(pl.col("entity").is_in(tried) & (pl.col("event_time") >= start - ws.dataset.lookback)).collect()
    part = with_label_rates(part, label_rates(ws, first, day), ws.dataset)
    return score_frame(detector, part, ws.dataset, tonight)


def newest_clean(ws: Workspace, until: datetime) -> date | None:
    """The newest day with clean rows that begins before `until`, or else of all; by what was recorded, not the rows."""
    clean = [row["day"] for row in states(ws, "validate").iter_rows(named=True) if state_of(row).counts["rows_clean"]]
    before = [day for day in clean if ws.dataset.day_bounds(day)[0] < until]
    return max(before or clean, default=None)


def compare(ws: Workspace, label: str, alone: Evaluation, learned: Learned) -> Comparison:
    """The challenger `label`, just learned, beside the champion; `alone` is what the challenger shows by itself.

    Both are judged on the holdout of the challenger's training, with the same anomalies injected, and at the same
    budget: each with the threshold that the holdout itself gives. From that neither has learned; on the calibration
    data the threshold of the one that has learned from it would be too low. What analysts have judged is called by
    each one's own threshold, as that is where dismissed incidents have their effect. Beside a champion no challenger is
    better without a holdout, nor where its own threshold, which will call the incidents, lets most of them pass and the
    champion's lets fewer.
    """
    incumbent = tracking.find(ws, tracking.CHAMPION)
    if incumbent is None:
        return _unopposed(label, alone, learned, "the first detector")
    try:
        champion = load_detector(incumbent.folder)
    except ConfigError as error:
        return _unopposed(label, alone, learned, str(error))
    if champion.channels != tuple(ws.dataset.channels):
        return _unopposed(label, alone, learned, f"champion {incumbent.label} knows other features")
    both, seen = (learned.detector, champion), _seen(learned, champion)
    part = _common(learned, champion) if seen <= 1 - UNSEEN else learned.part[learned.steps.step]
    told = _stretches(ws)
    new = stand(label, 0, both, ws.dataset, learned, part, told)
    old = stand(incumbent.label, 1, both, ws.dataset, learned, part, told)
    left = 0.0 if seen <= 1 - UNSEEN else seen
    better, words = judge_standings(new, old)
    own, possible = alone.injected_recall, new.equal.injected_recall
    if not (part == HOLDOUT).any():
        better, words = False, NO_HOLDOUT
    elif (
        own is not None and possible is not None and own < DEAF * possible and own < _own_recall(champion, learned, ws)
    ):
        better, words = False, f"its own threshold finds but {own:.0%} of the injected anomalies; {words}"
    note = f"; the champion has learned from {left:.0%} of this holdout" if left else ""
    return Comparison(better, words + note, table_of(new, old, left), facts_of(new, old, left))


def _own_recall(champion: "Detector", learned: Learned, ws: Workspace) -> float:
    """What the champion's own threshold finds of the same anomalies; 0 where it is not known."""
    return together(evaluate_members(champion, ws.dataset, learned).values()).injected_recall or 0.0


def _unopposed(label: str, alone: Evaluation, learned: Learned, reason: str) -> Comparison:
    threshold = learned.detector.threshold
    alarms = round(alone.realised * alone.entity_days)
    new = Standing(label, max(threshold.budget, threshold.aimed), alarms, alone, (), ())
    return Comparison(True, reason, table_of(new, None, 0.0), facts_of(new, None, 0.0))


def _learned_to(champion: "Detector") -> int:
    """The last moment that a detector has learned from, in microseconds; where it does not say, the end of its time."""
    moment = datetime.fromisoformat(champion.about.get("learned_to", champion.about["to"]))
    return int(moment.timestamp() * 1e6)


def _seen(learned: Learned, champion: "Detector") -> float:
    """The share of the holdout that the champion has learned from."""
    times = learned.steps.time[learned.part == HOLDOUT]
    return float((times <= _learned_to(champion)).mean()) if len(times) else 0.0


def _common(learned: Learned, champion: "Detector") -> NDArray[np.int64]:
    """`(rows,)` the part of each row, without a holdout where the champion has learned."""
    part = learned.part[learned.steps.step]
    known = learned.clean["event_time"].to_physical().to_numpy() <= _learned_to(champion)
    return np.where((part == HOLDOUT) & known, BEFORE, part)


def _stretches(ws: Workspace) -> pl.DataFrame:
    """What analysts have judged: entity, start, end, and whether it is real."""
    return pl.concat([confirmed(ws).with_columns(real=pl.lit(True)), dismissed(ws).with_columns(real=pl.lit(False))])


def stand(
    label: str,
    number: int,
    both: Sequence["Detector"],
    dataset: Dataset,
    learned: Learned,
    part: NDArray[np.int64],
    told: pl.DataFrame,
) -> Standing:
    """How the detector `both[number]` stands on the rows' `part`, beside the other one.

    Entities are taken together that have the same member of both, so that the same anomalies are injected for both, at
    the scale of the first, and at its budget.
    """
    alarms, promised, days, equal = 0, 0.0, 0.0, []
    called: dict[bool, list[bool]] = {True: [], False: []}
    rows = learned.clean.with_row_index("_row")
    for members, entities in _by_members(both, learned.steps.names).items():
        own = rows.filter(pl.col("entity").is_in(entities))
        chosen = [one.members.get(member or "", one) for one, member in zip(both, members, strict=True)]
        member, reference = chosen[number], chosen[0]
        clean = own.drop("_row")
        steps = build_steps(clean, dataset, member.encodings)
        own_part = part[own["_row"].to_numpy()][steps.first]
        for real, hit in _called(member, clean, steps, told):
            called[real].append(hit)
        if not (own_part == HOLDOUT).any():
            continue
        matched = at_budget(member, dataset, steps, own_part, reference.threshold.budget)
        found, judged = evaluate(matched, dataset, clean, steps, own_part, both[0].scaler.scale[0])
        score = judged.score * matched.threshold.factor(steps.names)[steps.entity]
        alarms += count_alarms(over_factors(member, steps, score), member.threshold.value, steps, dataset)
        promised += max(member.threshold.budget, member.threshold.aimed) * found.entity_days
        days += found.entity_days
        equal.append(found)
    if not equal:
        equal = [Evaluation(0.0, {}, float("nan"), 1 / 24)]
    return Standing(
        label, promised / days if days else 0.0, alarms, together(equal), tuple(called[True]), tuple(called[False])
    )  # fmt: skip


def _by_members(both: Sequence["Detector"], names: Sequence[str]) -> dict[tuple[str | None, ...], list[str]]:
    groups: dict[tuple[str | None, ...], list[str]] = {}
    for name in sorted(names):
        groups.setdefault(tuple(detector.member(name) for detector in both), []).append(name)
    return groups


def at_budget(
    detector: "Detector", dataset: Dataset, steps: Steps, part: NDArray[np.int64], budget: float
) -> "Detector":
    """The detector with the threshold and factors that the holdout gives for a budget of false alarms."""
    from models.threshold import Rule

    targets = part == HOLDOUT
    score = judge(detector, steps, targets).score
    if not np.isfinite(score).any():
        return detector
    return replace(
        detector, threshold=calibrator(detector, dataset, steps, targets)(score, Rule("false_alarms", budget))
    )


def _called(detector: "Detector", clean: pl.DataFrame, steps: Steps, told: pl.DataFrame) -> list[tuple[bool, bool]]:
    """For each stretch of `told` that holds a scored step: whether it is real, and whether the detector calls it."""
    codes = {name: code for code, name in enumerate(steps.names)}
    told = told.filter(pl.col("entity").is_in(list(codes)))
    targets = within(clean, told.drop("real"))[steps.first]
    if not targets.any():
        return []
    score, time, found = relative(detector, steps, targets).score, steps.time, []
    for entity, start, end, real in told.iter_rows():
        first, last = (int(moment.timestamp() * 1e6) for moment in (start, end))
        inside = score[(steps.entity == codes[entity]) & (time >= first) & (time <= last)]
        if np.isfinite(inside).any():
            found.append((real, bool(np.nanmax(inside) > detector.threshold.value)))
    return found


def judge_standings(new: Standing, old: Standing) -> tuple[bool, str]:
    """Whether the challenger is no worse than the champion, and a sentence that says by what.

    It is worse where it finds clearly less of the injected anomalies at the same budget, breaks its promise more
    clearly than the champion, misses clearly more of what analysts confirmed, or calls clearly more of what they
    dismissed. Clearly is what chance does less than one time in twenty; a difference of injected anomalies must be of
    five in a hundred as well. Where no anomaly was injected and none was confirmed it is not better either: the promise
    is kept, and dismissed incidents are passed over, by a detector that finds nothing at all.
    """
    found, known = (one.equal.injected_recall for one in (new, old))
    lost = found is not None and known is not None and found < known - TOLERANCE
    broken = poisson.sf(new.alarms - 1, new.promised * new.equal.entity_days) < CHANCE
    faults = [
        (not new.equal.hits and not new.confirmed, NO_ANOMALIES),
        (lost and _fewer(new.equal.hits, old.equal.hits), "it finds less of the injected anomalies"),
        (broken and new.realised > old.realised, "it breaks its promise of false alarms"),
        (_fewer(new.confirmed, old.confirmed), "it misses incidents that analysts confirmed"),
        (_fewer(old.dismissed, new.dismissed), "it calls incidents that analysts dismissed"),
    ]
    worse = [text for fault, text in faults if fault]
    words = (
        f"injected anomalies found {found_share(found)}, champion {old.label} {found_share(known)}; "
        f"false alarms {new.realised:.3g} of {new.promised:.3g} promised, champion "
        f"{old.realised:.3g} of {old.promised:.3g}"
    )
    return not worse, "; ".join([*worse, words])


def _fewer(these: Sequence[bool], those: Sequence[bool]) -> bool:
    """Whether `these` are true clearly less often than `those`, case by case (sign test)."""
    lost = sum(b and not a for a, b in zip(these, those, strict=True))
    won = sum(a and not b for a, b in zip(these, those, strict=True))
    return lost > won and binomtest(won, won + lost, alternative="less").pvalue < CHANCE


def table_of(new: Standing, old: Standing | None, seen: float) -> str:
    """Both in a Markdown table."""
    columns = [new, old] if old else [new]
    kinds = sorted({kind for one in columns for kind in one.equal.recall})
    lines: list[tuple[str, Callable[[Standing], str]]] = [
        ("false alarms promised, per entity and day", lambda one: f"{one.promised:.3g}"),
        ("false alarms on the holdout", lambda one: f"{one.realised:.3g} ({one.alarms})"),
        ("false alarms on the holdout at the same budget", lambda one: f"{one.equal.realised:.3g}"),
        ("injected anomalies found at the same budget", lambda one: found_share(one.equal.injected_recall)),
        *((f"– {kind}", lambda one, kind=kind: found_share(one.equal.recall.get(kind))) for kind in kinds),
        ("confirmed incidents found", lambda one: _of(one.confirmed)),
        ("dismissed incidents called again", lambda one: _of(one.dismissed)),
    ]
    head = ["", f"challenger {new.label}", *([f"champion {old.label}"] if old else [])]
    body = [[name, *(tell(one) for one in columns)] for name, tell in lines]
    table = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
    days = f"The holdout has {new.equal.entity_days:,.1f} entity-days, {len(new.equal.hits):,} anomalies were injected."
    note = f" The champion has learned from {seen:.0%} of it, which flatters the champion." if seen else ""
    return "\n".join([*table, "", days + note])


def _of(flags: Sequence[bool]) -> str:
    return f"{sum(flags)} of {len(flags)}"


def facts_of(new: Standing, old: Standing | None, seen: float) -> dict[str, Any]:
    """The same as plain values, by `challenger` and `champion`."""

    def plain(one: Standing) -> dict[str, Any]:
        return {
            "detector": one.label, "false_alarms_promised": one.promised, "false_alarms_on_holdout": one.realised,
            "false_alarms_at_equal_budget": one.equal.realised, "injected_recall": one.equal.injected_recall,
            "injected_recall_by_kind": dict(one.equal.recall), "holdout_entity_days": one.equal.entity_days,
            "confirmed_found": [sum(one.confirmed), len(one.confirmed)],
            "dismissed_called": [sum(one.dismissed), len(one.dismissed)],
        }  # fmt: skip

    champion = {"champion": plain(old), "champion_learned_from_holdout": seen} if old else {}
    return {"challenger": plain(new), **champion}
