"""Numbers, times and incidents in words: what the report, the notification and the terminal all say the same way."""

import math
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import polars as pl

from pipeline.config import Dataset, Feature, SequenceFeature, format_duration
from pipeline.message import Link, Message
from pipeline.tables import EVERYONE

if TYPE_CHECKING:  # a message about a failure is written where nothing heavy is imported
    from pipeline.promise import Promise
    from pipeline.score import Scored

NOTHING = "–"
LEAST = 0.01  # share of the score from which on a later driver is told, where there is room
# Up to this long, a stretch of time is told to the second.
SHORT = timedelta(minutes=10)
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def number(value: float | None) -> str:
    """`value` with four significant digits, such as `0.1234`, `18.2`, `12,350`; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3e}"
    digits = 3 - math.floor(math.log10(abs(value)))
    text = f"{round(value, digits):,.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(share: float | None) -> str:
    """`share` of one as a percentage: whole from 1 % on, two digits below."""
    if share is None or not math.isfinite(share):
        return NOTHING
    if share == 0 or share >= 0.00995:
        return f"{share * 100:.0f} %"
    return f"{share * 100:.2g} %" if share >= 1e-5 else "under 0.001 %"


def found_share(share: float | None) -> str:
    """The `share` of anomalies that were found, such as `93%`; `unknown` where there were none to find."""
    return "unknown" if share is None else f"{share:.0%}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`n` things, such as `1 incident`, `14,400 steps`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def listing(parts: list[str]) -> str:
    """The parts as one enumeration: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def duration(length: timedelta) -> str:
    """A length of time in its two largest units, such as `1 h 38 min`."""
    seconds = length.total_seconds()
    if seconds < 60:
        return f"{number(seconds)} s"
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        parts.append((left // size, unit))
        left %= size
    first = next(i for i, (n, _) in enumerate(parts) if n)
    return " ".join(f"{n} {unit}" for n, unit in parts[first : first + 2] if n)


def rarity(p_value: float | None) -> str:
    """A p-value as how often a normal step would score at least this high."""
    if p_value is None or not math.isfinite(p_value):
        return "not known"
    if p_value < 1e-6:
        return "less than once in a million normal steps"
    if p_value >= 0.1:
        return f"about {p_value * 100:.0f} in 100 normal steps"
    one_in = 1 / p_value
    digits = 1 - math.floor(math.log10(one_in))
    return f"about once in {round(one_in, digits):,.0f} normal steps"


def clean_text(value: object) -> str:
    """`value` from the data on one line, without control characters, for messages and log lines."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())


def local_time(moment: datetime, zone: ZoneInfo, form: str, *, offset: bool = False) -> str:
    """The time in `zone` as `strftime` writes it, with its `offset`, such as `02:30 CEST`, where it comes twice too."""
    local = moment.astimezone(zone)
    twice = local.utcoffset() != local.replace(fold=1 - local.fold).utcoffset()
    return local.strftime(form) + (f" {local:%Z}" if twice or offset else "")


def clock(moment: datetime, zone: ZoneInfo, day: date, *, seconds: bool = False, offset: bool = False) -> str:
    """The time of day in `zone`, with its date in front where that is not `day`; `24:00` at the end of `day`.

    It names its `offset`; also an hour that comes twice does.
    """
    local = moment.astimezone(zone)
    form = "%H:%M:%S" if seconds else "%H:%M"
    if local.date() == day + timedelta(days=1) and (local.hour, local.minute, local.second) == (0, 0, 0):
        return local_time(moment, zone, "24:00", offset=offset)
    text = local_time(moment, zone, form, offset=offset)
    return text if local.date() == day else f"{local.date()} {text}"


def stretch(start: datetime, end: datetime, zone: ZoneInfo, day: date) -> str:
    """`from 14:02 to 15:40 UTC`, or `at 14:02 UTC` for a single moment.

    Times name their offsets where these differ, or where they come twice.
    """
    begin, stop = start.astimezone(zone), end.astimezone(zone)
    seconds = end - start < SHORT and (begin.second, stop.second) != (0, 0)
    if start == end:
        return f"at {clock(start, zone, day, seconds=seconds)} {zone.key}"
    offset = begin.utcoffset() != stop.utcoffset()
    first, last = (clock(t, zone, day, seconds=seconds, offset=offset) for t in (start, end))
    return f"from {first} to {last} {zone.key}"


def feature_label(name: str) -> str:
    """A feature's name as a reader sees it."""
    return name.replace("_", " ")


def declared(dataset: Dataset, name: str) -> Feature | SequenceFeature | None:
    """The channel's declaration; None where the YAML no longer has it."""
    channels: list[Feature | SequenceFeature] = [*dataset.features, *dataset.sequence_features]
    return next((feature for feature in channels if feature.name == name), None)


def unit_of(dataset: Dataset, name: str) -> str:
    """The unit in which a channel is shown; empty where it has none."""
    feature = declared(dataset, name)
    if isinstance(feature, SequenceFeature):
        if feature.kind == "rolling_sum":
            return unit_of(dataset, feature.of or "")
        units = {"time_since_last": "s", "ratio_to_history": "× the usual", "rolling_count": "events"}
        return units.get(feature.kind, "share")
    return feature.unit if feature else ""


def meaning(dataset: Dataset, name: str) -> str:
    """What a sequence feature stands for; empty for a feature of the source."""
    feature = declared(dataset, name)
    if not isinstance(feature, SequenceFeature):
        return ""
    if feature.kind == "time_since_last":
        return f"time since the {dataset.entity}'s previous event"
    assert feature.over is not None
    over = f"the last {format_duration(feature.over)}"
    of = feature_label(feature.of or "")
    return {
        "ratio_to_history": f"{of} against its mean over {over}",
        "rolling_count": f"events in {over}",
        "rolling_sum": f"{of} summed over {over}",
        "label_rate": _rate_meaning(dataset, feature),
    }[feature.kind]


def _rate_meaning(dataset: Dataset, feature: SequenceFeature) -> str:
    """What a label_rate is the share of."""
    assert feature.over is not None
    known = format_duration(dataset.labels.delay) if dataset.labels else "the delay"
    return (
        f"share of events with the same {feature_label(feature.of or '')} that turned out anomalous, over the "
        f"{format_duration(feature.over)} that ended {known} before"
    )


def in_words(dataset: Dataset, name: str, value: float | None) -> str:
    """A channel's value, as `scores` holds it, with its unit; a category's is the negative log of its share."""
    if value is None:
        return NOTHING
    feature = declared(dataset, name)
    if isinstance(feature, SequenceFeature) and feature.kind == "time_since_last":
        return duration(timedelta(seconds=max(value, 0.0)))
    if isinstance(feature, Feature) and feature.type == "categorical":
        return f"a category of {percent(min(math.exp(-value), 1.0))}"
    if isinstance(feature, SequenceFeature) and feature.kind == "label_rate":
        return percent(min(max(value, 0.0), 1.0))
    unit = unit_of(dataset, name)
    unit = "event" if (unit, value) == ("events", 1.0) else unit
    return f"{number(value)}\N{NO-BREAK SPACE}{unit}".rstrip()


def ranked(incidents: pl.DataFrame) -> pl.DataFrame:
    """Anomalies first, the most severe on top; then the silent ones by start; what the calendar explains comes last."""
    return incidents.sort(
        pl.col("reason").is_not_null(), pl.col("kind") == "silent", "severity", "start", "entity",
        descending=[False, False, True, False, False], nulls_last=True,
    )  # fmt: skip


def who(incident: Mapping[str, Any]) -> str:
    """The incident's entity on one line; `the whole source` where it concerns all of them."""
    return "the whole source" if incident["entity"] == EVERYONE else clean_text(incident["entity"])


def drivers_in_words(incident: Mapping[str, Any], most: int = 2) -> str:
    """`vibration (62 %) and current (20 %)`: the leading drivers; the later ones only from a tenth of the score on."""
    return listing([f"{feature_label(d['feature'])} ({percent(d['share'])})" for d in leading(incident, most)])


def what_drove(incident: Mapping[str, Any], most: int = 2) -> str:
    """The leading drivers, as `drivers_in_words` has them; of a silence, that nothing was sent."""
    return "sent nothing" if incident["kind"] == "silent" else drivers_in_words(incident, most)


def leading(incident: Mapping[str, Any], most: int | None = 2, least: float = 0.1) -> list[Mapping[str, Any]]:
    """The drivers that are worth a word: the first, and those up to `most` (None: all) that made `least` of the score.

    `least` is a share of one.
    """
    return [d for i, d in enumerate((incident["drivers"] or [])[:most]) if i == 0 or d["share"] >= least]


def incident_line(incident: Mapping[str, Any], dataset: Dataset, day: date) -> str:
    """One incident in one line: who, when, and what drove it or that nothing came."""
    when = stretch(incident["start"], incident["end"], dataset.tz, day)
    expected = f" ({clean_text(incident['reason'])})" if incident["reason"] else ""
    if incident["kind"] == "silent":
        return f"{who(incident)} sent nothing {when}{expected}"
    drivers = drivers_in_words(incident)
    return f"{who(incident)} {when}" + (f", driven by {drivers}" if drivers else "") + expected


def summary_line(dataset: Dataset, day: date, incidents: pl.DataFrame, steps: int | None = None) -> str:
    """The night in one sentence: how many incidents, the most severe one, how many fell silent, what was planned.

    `steps` is how many steps were scored, where that is known: a night without any is not called normal.
    """
    found = ranked(incidents.filter(pl.col("reason").is_null()))
    planned = incidents.filter(pl.col("reason").is_not_null())
    anomalies = found.filter(pl.col("kind") != "silent")
    silent = found.filter(pl.col("kind") == "silent")
    place = f"on {day} in {dataset.name}"
    quiet, expected = _silence(silent, dataset, day), f"; {planned_line(planned)}" if len(planned) else ""
    rest = f"{quiet}{expected}."
    if not anomalies.is_empty():
        worst = incident_line(anomalies.row(0, named=True), dataset, day)
        most = "the most severe, " if len(anomalies) > 1 else ""
        return f"{count(len(anomalies), 'incident')} {place}: {most}{worst}{rest}"
    if steps == 0:
        return f"Nothing was scored {place}: no valid step arrived, so this says nothing about what happened{rest}"
    scored = f": {count(steps, 'step')} scored, and none of them led to an incident" if steps and not expected else ""
    return f"{'No anomaly' if quiet else 'Nothing abnormal'} {place}{scored}{rest}"


def _silence(silent: pl.DataFrame, dataset: Dataset, day: date) -> str:
    if silent.is_empty():
        return ""
    if len(silent) == 1:
        return f"; {incident_line(silent.row(0, named=True), dataset, day)}"
    names = sorted({who(row) for row in silent.iter_rows(named=True)})
    shown = names[:3] + ([count(len(names) - 3, "other")] if len(names) > 3 else [])
    return f"; {listing(shown)} sent nothing for a while"


def promise_line(promise: "Promise") -> str:
    """Promised against realised in one sentence; empty where nothing was scored."""
    lately = promise.lately
    if promise.promised is None or lately.bounds is None:
        return ""
    low, high = (short(bound) for bound in lately.bounds)
    over = "In this night" if lately.nights == 1 else f"Over the last {lately.nights} nights"
    were = "was" if lately.incidents == 1 else "were"
    verdict = "the promise is kept"
    if lately.incidents > promise.promised * lately.entity_days:
        verdict = "more than promised, but no more than chance explains"
    if lately.bounds[0] > promise.promised:
        verdict = "more than promised; confirm those that are real and dismiss the others, for training to heed"
    return (
        f"{over} there {were} {count(lately.incidents, 'incident')} that nobody confirmed in "
        f"{short(lately.entity_days)} entity-days, {short(lately.rate)} per entity and day ({low} to {high} "
        f"by what such a count can tell), where at most {number(promise.promised)} are promised: {verdict}."
    )


def drift_line(drift: Mapping[str, Any], dataset: Dataset) -> str:
    """A slow drift in one sentence."""
    feature = drift["feature"]
    observed, usual = (in_words(dataset, feature, drift[what]) for what in ("observed", "usual"))
    return (
        f"{clean_text(drift['entity'])}: {feature_label(feature)} lies around {observed}, in training it lay around "
        f"{usual}, {short(abs(drift['deviations']))} deviations away"
    )


def unseen_line(scored: "Scored") -> str:
    """Which entities training did not know, in one sentence; empty where it knew them all."""
    if scored.unseen == 0:
        return ""
    names = [clean_text(name) for name in scored.unseen_names[:3]]
    shown = names + ([count(scored.unseen - len(names), "other")] if scored.unseen > len(names) else [])
    verb = "was not there in training and is" if scored.unseen == 1 else "were not there in training and are"
    return f"{listing(shown)} {verb} judged on the scales of all"


def short(value: float | None) -> str:
    """`value` with two significant digits, or whole where it has more."""
    if value is None or value == 0 or not math.isfinite(value):
        return number(value)
    return number(float(f"{value:.2g}")) if abs(value) < 100 else f"{value:,.0f}"


def planned_line(planned: pl.DataFrame) -> str:
    """How many incidents the calendar explains, and by what."""
    reasons = sorted({clean_text(reason) for reason in planned["reason"]})
    verb = "is" if len(planned) == 1 else "are"
    return f"{count(len(planned), 'incident')} {verb} explained by the calendar ({listing(reasons)})"


def budget_line(left_out: pl.DataFrame, most: int) -> str:
    """What a summary does not tell one by one."""
    entities = count(left_out["entity"].n_unique(), "entity", "entities")
    return f"and {len(left_out):,} more of {entities}: above {most:,} in a night (notify.most), only the worst are told"


def peak_lines(incident: Mapping[str, Any], dataset: Dataset, most: int = 2) -> list[str]:
    """`vibration was 14.2 mm/s where 3.1 mm/s was expected (62 % of the score)`: each leading driver at the peak."""
    return [_peak_line(driver, dataset) for driver in leading(incident, most)]


def _peak_line(driver: Mapping[str, Any], dataset: Dataset) -> str:
    name = driver["feature"]
    observed, expected = (in_words(dataset, name, driver[what]) for what in ("observed", "expected"))
    rate = isinstance(feature := declared(dataset, name), SequenceFeature) and feature.kind == "label_rate"
    was = "was missing" if observed == NOTHING else f"was {observed}"
    where = "" if rate or expected == NOTHING else f" where {expected} was expected"
    return f"{feature_label(name)} {was}{where} ({percent(driver['share'])} of the score)"


def how_sure(incident: Mapping[str, Any]) -> str:
    """`12.4 × the threshold; about once in 50,000 normal steps`; empty for a silence, which has no score."""
    if incident["severity"] is None:
        return ""
    return f"{incident['severity']:,.3g} × the threshold; {rarity(incident['p_value'])}"


def chance_line(promise: "Promise") -> str:
    """Whether to believe a night's incidents: how many of them chance alone may have made; empty without a promise."""
    if promise.promised is None:
        return ""
    alone = short(promise.tonight.entity_days * promise.promised)
    bounds = promise.lately.bounds
    more = "; lately there were more" if bounds and bounds[0] > promise.promised else ""
    return (
        f"Whether to believe it: chance alone makes up to about {alone} in such a night "
        f"({number(promise.promised)} false alarms per entity and day are promised{more})"
    )


def recovery(incident: Mapping[str, Any], dataset: Dataset, day: date) -> str:
    """`pump-7 (normal again since 03:12 UTC)`: who has recovered, and since when."""
    what = "sends again" if incident["kind"] == "silent" else "normal again"
    since = stretch(incident["since"], incident["since"], dataset.tz, day).removeprefix("at ")
    return f"{who(incident)} ({what} since {since})"


def failure_message(*, dataset: str, dag: str, run: str, task: str, reason: str, error: str, log: str) -> Message:
    """The message that a run has failed."""
    late = reason == "timed_out"
    what = f"The task {task} failed" if task else "It failed"
    if late:
        what = f"The run took too long and was ended{f'; the task {task} was not done' if task else ''}"
    why = f": {error}" if error and not late else ""
    lines = [what + why if why else f"{what}."]
    if not error and not late:
        lines.append("It left no error: its process was killed, ran out of memory, or its worker was lost.")
    links = (Link("Log", log),) if log else ()
    return Message(f"{dataset}: {dag} failed", notes=(*"\n".join(lines).splitlines(), f"Run: {run}"), links=links)


MISSING = {
    "landing": "nothing of the day has landed: the ingest did not run, or did not get that far",
    "validate": "its data has landed, but was not validated",
    "refused": "the data gate refused the day: ",
    "score": "its data is valid, but was not scored",
    "changed": "its data has changed since it was scored, and was not scored again",
    "incidents": "it is scored, but its incidents were not looked for",
    "report": "its incidents are found, but there is no report",
}
"""What a night lacks, by the step that is missing."""


def deadline_message(dataset: Dataset, day: date, missing: str) -> Message:
    """The message that a night is not done by its deadline."""
    by = f"{dataset.deadline:%H:%M} {dataset.zone}" if dataset.deadline else "now"
    return Message(f"{dataset.name}: {day} is not done by {by}", notes=(f"What is missing: {missing}",))
