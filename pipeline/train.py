"""Clean steps to a detector: split by time, fit, calibrate, evaluate, register, promote.

Every entity's own stretch of time is divided in this order: fit, early stopping, calibration, holdout. What is fitted
never sees what it is calibrated on, and neither sees the holdout.
"""

import hashlib
import logging
import time
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import figures, logbook, tracking
from pipeline.calendar import planned_stretches
from pipeline.config import Dataset, days_between
from pipeline.errors import GateRefusedError, NightsiftError
from pipeline.incidents import entity_days
from pipeline.ingest import ingest
from pipeline.labels import known_labels, label_rates, with_label_rates
from pipeline.lake import Lake
from pipeline.progress import counted, tell
from pipeline.review import confirmed, dismissed
from pipeline.score import (
    Predicted,
    Weighed,
    by_member,
    cells,
    context_days,
    event_signals,
    judge,
    lay,
    predict,
    scan_clean,
    smoothed_cells,
    tensors,
    weigh,
)
from pipeline.sequences import Steps, Windows, build_steps, cut_windows, in_order, learn_encodings, make_grid
from pipeline.validate import validate
from pipeline.workspace import Workspace

if TYPE_CHECKING:
    from models.autoencoder import Checkpoints, State
    from models.detector import Detector, Scope
    from models.scores import Odds, Signals, View
    from models.threshold import Rule, Threshold

log = logging.getLogger("nightsift.train")

MIN_STEPS = 64
OWN_WINDOWS = 16  # a group with fewer windows' worth of steps has no detector of its own
MOST_ROWS = 20_000_000  # rows that are learned from; what stands in memory while it trains goes with them
FIT, STOP, CALIBRATION, HOLDOUT, BEFORE, KNOWN = range(6)
STOP_SHARE = 0.1  # of the time to train on, kept for early stopping
# How a sensor is looked at: whether at its inputs or errors, the weight of the newest step in the smoothing, and
# whether at each channel alone.
VIEWS = ((False, 1.0, False), (False, 0.1, False), (True, 0.1, False), (True, 0.3, True))
UNSTATED = 1e-4  # the p-value at which views are balanced where the threshold is a score that somebody has stated
WANDER = 0.4  # of what a level moved in training, how much is in the scale of its cells
LEAST = 0.01  # deviations of the training data: no smoothed cell is standardised by less
BASELINE = 4  # windows in which a sensor's slow baseline follows
# An event is predicted from those before it; a sensor also from the sensors beside it.
GROUPS = {"sensor": 2, "transaction": 1}
INJECTED = 200  # stretches of the holdout that are made abnormal, one at a time
EVENT_TAIL = 0.01  # the share of the calibration's events that the tails of signals are fitted to
CHECKPOINTS = "training"  # where they are staged
LABEL = "_label"  # whether an event was anomalous, null where it is not known
Progress = Callable[[str], None]
Calibrate = Callable[[NDArray[np.float64], "Rule"], "Threshold"]


@dataclass(frozen=True, slots=True)
class Trained:
    """What training ended with.

    version: label of the registered detector; promoted: whether it is the champion now, and why, in `reason`
    better: whether the rule would have it promoted; table: challenger and champion side by side, in Markdown
    run: id of its MLflow run
    budget, realised: false incidents per entity and day, promised and seen on the holdout
    injected_recall: share of injected anomalies found on the holdout; None where none could be injected
    """

    version: str
    promoted: bool
    reason: str
    steps: int
    entities: int
    threshold: float
    budget: float
    realised: float
    injected_recall: float | None
    seconds: float
    better: bool
    table: str
    run: str


@dataclass(frozen=True, slots=True)
class Staged:
    """The checkpoints of a dataset's trainings, in the lake, where each worker finds what another one began."""

    lake: Lake
    say: Progress = log.info

    def load(self, key: str) -> "State | None":
        """The state that was last saved under `key`; None where none was, or it cannot be read."""
        try:
            frame = self.lake.staged(f"{CHECKPOINTS}/{key}")
            if frame is None:
                return None
            state = {name: np.load(BytesIO(data), allow_pickle=False) for name, data in frame.iter_rows()}
        except (NightsiftError, pl.exceptions.PolarsError, OSError, ValueError) as error:
            log.warning("%s: a checkpoint cannot be read, training begins anew: %s", self.lake.dataset, error)
            return None
        self.say(f"goes on after epoch {state['epoch']} of an earlier run")
        return state

    def save(self, key: str, state: "State") -> None:
        """Keep `state` under `key`, whole or not at all."""
        files = {name: BytesIO() for name in state}
        for name, array in state.items():
            np.save(files[name], array, allow_pickle=False)
        data = {"name": list(files), "data": [file.getvalue() for file in files.values()]}
        self.lake.stage(f"{CHECKPOINTS}/{key}", pl.DataFrame(data, schema={"name": pl.String, "data": pl.Binary}))

    def clear(self) -> None:
        """Remove them all, also those of trainings that nobody took up again.

        In an object store they stay, as all that was staged: only the same fit by the same code ever takes them up, and
        it would end with the same weights.
        """
        self.lake.unstage(CHECKPOINTS)


@dataclass(frozen=True, slots=True)
class Learned:
    """A detector, and what it was learned from.

    clean: the rows in order; steps: theirs; part: `(n,)`, the part of the time that each step belongs to
    calibrated: `(n,)` the scores that the threshold stands on, NaN elsewhere
    """

    detector: "Detector"
    clean: pl.DataFrame
    steps: Steps
    part: NDArray[np.int64]
    calibrated: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A detector on the holdout.

    realised: false incidents per entity and day
    recall: the share of injected anomalies found, by kind
    explained: of those found, the share in which the channel that was disturbed contributes most at the peak
    hits: of each injected anomaly whether it was found
    """

    realised: float
    recall: Mapping[str, float]
    explained: float
    entity_days: float
    hits: tuple[bool, ...] = ()

    @property
    def injected_recall(self) -> float | None:
        """The mean over the kinds of injection; None where nothing could be injected."""
        return float(np.mean(list(self.recall.values()))) if self.recall else None


def train(ws: Workspace, start: datetime, end: datetime, say: Progress = log.info, cause: str | None = None) -> Trained:
    """Train on the event times from `start` to `end` (half-open, aware), register the detector, and decide on it.

    `cause` says in MLflow why it was trained.
    Ingests and validates what is not there yet. A training that was killed goes on where it was when it is run again,
    and ends with the same detector. Raises `GateRefusedError` where there is too little to learn from, and
    `NightsiftError` where what was learned is broken.
    """
    import mlflow

    from pipeline.promotion import decide

    began, checkpoints = time.monotonic(), Staged(ws.lake, say)
    clean, name = snapshot(ws, start, end, say), logbook.training_name(ws.dataset, start, end)
    tracking.end_killed(ws, "train", name)
    with tracking.run(ws, "train", name) as active:
        _log_inputs(ws, active.info.run_id, start, end, clean, cause)
        about, spared = _about(ws, start, end), dismissed(ws)
        abnormal = pl.concat([confirmed(ws), planned_stretches(ws, clean["entity"].unique(), start, end)])
        say(f"not learned from, confirmed or in the calendar: {within(clean, abnormal).sum():,} rows")
        learned = learn_members(ws.dataset, clean, start, about, abnormal, spared, say, checkpoints)
        trained = decide(ws, _register(ws, learned, active.info.run_id), say)
        ways = {"Comparison": "comparison.md", "Calibration": "figures/calibration.png"}
        mlflow.set_tags(tracking.note_tags(active, logbook.training_note(trained, len(clean)), ways))
        checkpoints.clear()
        log.info("%s: MLflow run %s", ws.dataset.name, active.info.run_id)
    return replace(trained, seconds=round(time.monotonic() - began, 1))


def snapshot(ws: Workspace, start: datetime, end: datetime, say: Progress) -> pl.DataFrame:
    """The clean rows up to `end`, from as far before `start` as gives context."""
    first = context_days(ws.dataset, ws.dataset.day_of(start))[0]
    last = ws.dataset.day_of(end - timedelta(microseconds=1))
    ingested = ingest(ws, first, last)
    say(f"{ingested.files} new source files, {ingested.rows:,} rows")
    for day in counted("days", days_between(first, last)):
        try:
            validate(ws, day)
        except GateRefusedError as error:
            say(f"left out: {error}")
    rows = scan_clean(ws, first, last)
    rows = rows.filter(pl.col("event_time").is_between(start - ws.dataset.lookback, end, "left"))
    inside = rows.filter(pl.col("event_time") >= start)
    counts = inside.group_by("entity").len().collect(engine="streaming")
    if counts["len"].sum() < MIN_STEPS:
        raise GateRefusedError(
            f"{ws.dataset.name}: {counts['len'].sum()} clean rows from {start} to {end} are too few to train on (at "
            f"least {MIN_STEPS}); choose a longer stretch or check the source: nightsift check {ws.dataset.name}"
        )
    drawn = draw_entities(counts, MOST_ROWS)
    if len(drawn) < len(counts):
        say(
            f"learning from {len(drawn):,} of {len(counts):,} entities, about {MOST_ROWS:,} rows; the others are "
            "scored on the scales of all"
        )
        rows = rows.filter(pl.col("entity").is_in(drawn["entity"].implode()))
    clean = with_labels(ws, rows.collect(), end, say)
    say(f"training data: {drawn['len'].sum():,} clean rows of {len(drawn):,} entities")
    return clean


def with_labels(ws: Workspace, clean: pl.DataFrame, end: datetime, say: Progress) -> pl.DataFrame:
    """`clean` with its label rates, and where labels are declared with what is known at `end` in the column `LABEL`."""
    if ws.dataset.labels is None or clean.is_empty():
        return clean
    days = clean.select(pl.col("event_time").min().alias("first"), pl.col("event_time").max().alias("last")).row(0)
    clean = with_label_rates(clean, label_rates(ws, *map(ws.dataset.day_of, days)), ws.dataset)
    known = known_labels(ws, clean, ws.dataset.day_of(end))
    say(f"labels: {known.count():,} events are known, {known.sum():,} of them anomalous")
    return clean.with_columns(known.alias(LABEL))


def draw_entities(counts: pl.DataFrame, most: int) -> pl.DataFrame:
    """Of `counts` (entity, len) as many entities as have `most` rows together, and at least one.

    By a hash of their names, so that the same ones are drawn whenever and wherever it is done.
    """
    by_hash = counts.with_columns(
        hash=pl.Series([zlib.crc32(name.encode()) for name in counts["entity"]], dtype=pl.Int64)
    ).sort("hash", "entity")
    return by_hash.filter((pl.col("len").cum_sum() <= most) | (pl.int_range(pl.len()) == 0)).drop("hash")


def learn_members(
    dataset: Dataset,
    clean: pl.DataFrame,
    start: datetime,
    about: Mapping[str, Any],
    abnormal: pl.DataFrame,
    spared: pl.DataFrame,
    say: Progress,
    checkpoints: "Checkpoints | None" = None,
) -> "Learned":
    """What `learn` gives of all rows, its detector with members: one for each group that has enough to learn from."""
    learned = learn(dataset, clean, start, about, abnormal, spared, say, checkpoints)
    scope = dataset.model.scope
    members = {}
    for group, entities in groups_of(learned.steps.names, scope).items():
        rows = clean.filter(pl.col("entity").is_in(entities))
        steps = int((rows["event_time"] >= start).sum())
        wanted = max(MIN_STEPS, OWN_WINDOWS * dataset.window_length)
        if steps < wanted:
            say(f"{group}: {steps:,} steps are too few for a detector of its own (at least {wanted:,})")
            continue
        try:
            with tracking.nested(group):
                own = learn(dataset, rows, start, about, abnormal, spared, _said_of(group, say), checkpoints)
            members[group] = own.detector
        except GateRefusedError as error:
            say(f"{group}: no detector of its own: {error}")
    if scope != "all":
        say(f"{len(members)} groups have a detector of their own; all others share one")
    return replace(learned, detector=replace(learned.detector, scope=scope, members=members))


def _said_of(group: str, say: Progress) -> Progress:
    return lambda text: say(f"{group}: {text}")


def groups_of(entities: Collection[str], scope: "Scope") -> dict[str, list[str]]:
    """The entities by group, in the order of the groups' names; those of no group are left out."""
    from models.detector import group_of

    groups: dict[str, list[str]] = {} if isinstance(scope, str) else {group: [] for group in scope}
    for entity in sorted(entities):
        group = group_of(entity, scope)
        if group:
            groups.setdefault(group, []).append(entity)
    return dict(sorted(groups.items()))


def learn(
    dataset: Dataset,
    clean: pl.DataFrame,
    start: datetime,
    about: Mapping[str, Any],
    abnormal: pl.DataFrame,
    spared: pl.DataFrame,
    say: Progress,
    checkpoints: "Checkpoints | None" = None,
) -> "Learned":
    """A detector from clean rows, with what its evaluation needs.

    `abnormal` holds the stretches (entity, start, end) that analysts confirmed as incidents, and those of the calendar:
    nothing is learned there. `spared` holds those that they dismissed: they raise the thresholds of their own entities.
    With `checkpoints` a fit that was cut short goes on.
    """
    from models.autoencoder import AutoencoderConfig, build_autoencoder, same_size
    from models.detector import Detector
    from models.scaler import RobustScaler
    from models.scores import Signals
    from models.threshold import Threshold

    clean = in_order(clean, dataset)
    faulty = within(clean, abnormal)
    part = np.where(faulty, BEFORE, split(clean, start, dataset))
    normal = within(clean, spared) & ~faulty
    known = labels_of(clean)
    part[known == 1] = np.where(part[known == 1] == CALIBRATION, KNOWN, BEFORE)
    encodings = learn_encodings(clean.filter(pl.Series(np.isin(part, (FIT, STOP)))), dataset)
    steps = build_steps(clean, dataset, encodings)
    part, known = part[steps.first], known[steps.first]
    fitted = part == FIT
    taught = steps.time[np.isin(part, (FIT, STOP, CALIBRATION, KNOWN))]
    about = {**about, "learned_to": _moment(taught.max(initial=0)).isoformat()}
    scaler = RobustScaler.learn(steps.values[fitted], steps.observed[fitted], steps.entity[fitted], steps.names)
    model = dataset.model
    config = AutoencoderConfig(
        steps=dataset.window.steps,
        rows=dataset.window.rows,
        channels=len(dataset.channels),
        filters=tuple(model.filters),
        kernel=model.kernel,
        latent=model.latent,
        kind=model.kind,
        precision=model.precision,
    )
    config = same_size(config)
    detector = Detector(
        config=config,
        model=build_autoencoder(config, seed=model.seed),
        about=about,
        channels=tuple(dataset.channels),
        encodings=encodings,
        scaler=scaler,
        views=(),
        signals=Signals(amounts(dataset), minor(dataset), (), rates(dataset)),
        usual=_usual_runs(dataset, steps, np.isin(part, (FIT, STOP))),
        groups=min(GROUPS[dataset.kind], len(dataset.channels) - 1),
        threshold=Threshold.blank(),
    )
    _fit(detector, dataset, steps, part, say, checkpoints)
    detector, calibrated = set_threshold(detector, dataset, steps, part, known, say)
    if dataset.threshold.score is None:
        detector = _spare(detector, steps, normal[steps.first], say)
    return Learned(detector, clean, steps, part, calibrated)


def split(clean: pl.DataFrame, start: datetime, dataset: Dataset) -> NDArray[np.int64]:
    """`(n,)` int64: FIT, STOP, CALIBRATION or HOLDOUT by a row's place in its entity's time, BEFORE ahead of `start`.

    By entity, as entities need not have been there at the same time.
    """
    held = dataset.training.calibration + dataset.training.holdout
    edges = [(1 - held) * (1 - STOP_SHARE), 1 - held, 1 - dataset.training.holdout]
    inside = pl.col("event_time") >= start
    place = (inside.cum_sum() - 0.5).over("entity") / inside.sum().over("entity")
    share = clean.select(share=pl.when(inside).then(place))["share"]
    return np.where(share.is_null(), BEFORE, np.searchsorted(edges, share.fill_null(0), "right"))


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(microseconds))


def labels_of(clean: pl.DataFrame) -> NDArray[np.float64]:
    """`(n,)` float64: 1 for a row that a known label calls anomalous, 0 for one that it calls normal, else NaN."""
    if LABEL not in clean.columns:
        return np.full(len(clean), np.nan)
    return clean[LABEL].cast(pl.Float64).fill_null(np.nan).to_numpy()


def within(clean: pl.DataFrame, stretches: pl.DataFrame) -> NDArray[np.bool_]:
    """`(n,)` bool: the row lies in one of its entity's `stretches` (entity, start, end; both ends included)."""
    inside = np.zeros(len(clean), bool)
    alike = stretches.group_by("start", "end", maintain_order=True).agg("entity")
    for start, end, entities in alike.iter_rows():
        hit = pl.col("entity").is_in(entities) & pl.col("event_time").is_between(start, end)
        inside |= clean.select(hit.alias("hit"))["hit"].to_numpy()
    return inside


def _fit(
    detector: "Detector",
    dataset: Dataset,
    steps: Steps,
    part: NDArray[np.int64],
    say: Progress,
    checkpoints: "Checkpoints | None",
) -> None:
    """Fit the network in place, with early stopping on the part of time that follows."""
    import mlflow

    from models.autoencoder import fit

    rng = np.random.default_rng(dataset.model.seed)
    rows, grid = detector.scaler.rows(steps.entity, steps.names), make_grid(steps)
    laid = lay(grid, detector.scaler.transform(steps.values, steps.observed, rows), steps.observed)
    windows, held = (
        _draw(cut_windows(steps, grid, part == which, dataset.window), most, rng)
        for which, most in ((FIT, dataset.model.windows), (STOP, dataset.model.windows // 4))
    )
    say(f"fitting on {len(windows):,} windows of {dataset.window.steps} × {dataset.window.rows} steps, "
        f"{windows.padding:.0%} of them padding")  # fmt: skip
    mlflow.log_metric("padding_share", windows.padding)
    tracking.log_devices(dataset.name)
    values, observed, mask = tensors(windows, laid)
    validation = tensors(held, laid) if len(held) else None
    history = fit(
        detector.model, values, observed, mask, validation=validation, epochs=dataset.model.epochs,
        batch=dataset.model.batch, seed=dataset.model.seed, groups=detector.groups,
        on_epoch=lambda epoch, logs: _log_epoch(epoch, dataset.model.epochs, logs, say), checkpoints=checkpoints,
    )  # fmt: skip
    tell("epochs", dataset.model.epochs, dataset.model.epochs)  # it may have stopped early
    tracking.log_figure(figures.learning_curve(history), "learning_curve")


def _draw(windows: Windows, most: int, rng: np.random.Generator) -> Windows:
    """At most so many of the windows, drawn without replacement, in order."""
    if len(windows) <= most:
        return windows
    return windows.take(np.sort(rng.choice(len(windows), most, replace=False)))


def _log_epoch(epoch: int, most: int, logs: Mapping[str, float], say: Progress) -> None:
    import mlflow

    mlflow.log_metrics({name: float(value) for name, value in logs.items()}, step=epoch)
    say(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4f}" for name, value in logs.items()))
    tell("epochs", epoch + 1, most)


def set_threshold(
    detector: "Detector",
    dataset: Dataset,
    steps: Steps,
    part: NDArray[np.int64],
    known: NDArray[np.float64],
    say: Progress,
) -> tuple["Detector", NDArray[np.float64]]:
    """The detector with views or signals and the threshold from the calibration part, and the scores there.

    The threshold stands on scores of steps that the views or signals were not learned from: each entity's earlier half
    by what its later half teaches, and the other way round (cross-fitting, as Chernozhukov and others 2018). Scores of
    the steps that they were learned from are too low, the more so the less there are.
    """
    from models.threshold import Rule

    targets = part == CALIBRATION
    predicted = predict(detector, steps, targets | (part == KNOWN))
    if not np.isfinite(predicted.error[targets]).any():
        raise GateRefusedError(
            f"{dataset.name}: nothing is left to calibrate the threshold on; train on a longer stretch of time"
        )
    later, earlier = _later_half(steps, predicted.targets), np.isin(part, (FIT, STOP))
    halves = tuple(
        (_learn_to_judge(detector, dataset, steps, replace(predicted, targets=learned), earlier, known), scored)
        for learned, scored in ((later, targets & ~later), (predicted.targets & ~later, targets & later))
    )
    detector = _learn_to_judge(detector, dataset, steps, predicted, earlier, known)
    at, rule = calibrator(detector, dataset, steps, targets), Rule(*dataset.threshold.rule)
    detector, score = _cross_fitted(detector, halves, steps, predicted, rule, at)
    threshold = at(score, rule)
    say(f"threshold {threshold.value:.3f} for {threshold.budget:g} false alarms per entity and day, "
        f"from {threshold.entity_days:,.1f} entity-days")  # fmt: skip
    if threshold.aimed > threshold.budget:
        say(f"so little time can vouch for {threshold.aimed:.2g} at best: train on a longer stretch, or raise "
            "threshold.false_alarms")  # fmt: skip
    if threshold.factors:
        lowest, highest = min(threshold.factors.values()), max(threshold.factors.values())
        say(f"entities differ: thresholds of their own for {len(threshold.factors):,}, {lowest:.2f} to {highest:.2f} "
            "times that of all")  # fmt: skip
    return replace(detector, threshold=threshold), score


def _cross_fitted(
    detector: "Detector",
    halves: Sequence[tuple["Detector", NDArray[np.bool_]]],
    steps: Steps,
    predicted: Predicted,
    rule: "Rule",
    at: Calibrate,
) -> tuple["Detector", NDArray[np.float64]]:
    """The detector with its views balanced, and the scores `(n,)` of targets by the half that did not learn from them.

    Views of channels alone are balanced against the others so that each by itself would have its threshold at the same
    score, and that where no channel is beyond its own level nothing is anomalous.
    """
    from models.threshold import Rule

    def scores(alone: bool) -> NDArray[np.float64]:
        out = np.full(len(predicted.targets), np.nan)
        for half, scored in halves:
            views = tuple(view for view in half.views if view.alone is alone)
            out[scored] = weigh(replace(half, views=views), steps, predicted).score[scored]
        return out

    together = scores(alone=False)
    if not any(view.alone for view in detector.views):
        return detector, together
    alone = scores(alone=True)
    balance = Rule("p_value", UNSTATED) if rule.kind == "score" else rule
    level, own = (at(score, balance).value for score in (together, np.sqrt(alone)))
    weight = level / max(own, 1.0) ** 2
    views = (replace(view, form=weight * view.form) if view.alone else view for view in detector.views)
    return replace(detector, views=tuple(views)), np.fmax(together, weight * alone)


def calibrator(detector: "Detector", dataset: Dataset, steps: Steps, targets: NDArray[np.bool_]) -> Calibrate:
    """What makes a threshold of scores `(n,)` of the target steps, by a rule."""
    from models.threshold import TAIL_SHARE, calibrate

    chosen, days = np.flatnonzero(targets), covered(steps, targets, dataset)

    def at(score: NDArray[np.float64], rule: "Rule") -> "Threshold":
        return calibrate(
            score[chosen], steps.entity[chosen], steps.time[chosen],
            names=steps.names, rule=rule, merge=dataset.merge_within.total_seconds() * 1e6, entity_days=days,
            # Where rates are high, normal events crowd together: no smooth tail goes on from there.
            tail_share=EVENT_TAIL if detector.signals.odds else TAIL_SHARE,
        )  # fmt: skip

    return at


def _spare(detector: "Detector", steps: Steps, normal: NDArray[np.bool_], say: Progress) -> "Detector":
    """The detector whose thresholds lie above the dismissed steps `normal` `(n,)` of their entities, within bounds."""
    if not normal.any():
        return detector
    peaks = pl.DataFrame({"entity": steps.entity, "score": judge(detector, steps, normal).score})
    highest = peaks.fill_nan(None).drop_nulls().group_by("entity").agg(pl.col("score").max()).sort("entity")
    dismissed = {steps.names[code]: score for code, score in highest.iter_rows()}
    say(f"dismissed incidents inform the thresholds of {len(dismissed):,} entities")
    return replace(detector, threshold=detector.threshold.sparing(dismissed))


def _later_half(steps: Steps, targets: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`(n,)` bool: the target steps of the later half of each entity's."""
    from models.threshold import later_half

    out = np.zeros(len(targets), bool)
    out[targets] = later_half(steps.entity[targets], len(steps.names))
    return out


def _learn_to_judge(
    detector: "Detector",
    dataset: Dataset,
    steps: Steps,
    predicted: Predicted,
    earlier: NDArray[np.bool_],
    known: NDArray[np.float64],
) -> "Detector":
    """The detector with what turns errors into scores, learned on the target steps: views, or the rarity of signals.

    From the steps that are `earlier` `(n,)` the network has learned: their errors are too small, but their inputs are
    as good as any, and the more of them there are the better what is normal is known. Targets that are `known` to have
    been anomalous teach no rarity, and all that are known how often a score is.
    """
    from models.threshold import Rarity

    if dataset.kind == "sensor":
        return replace(detector, views=_learn_views(detector, dataset, steps, predicted, earlier))
    signals = event_signals(detector, steps, predicted)
    normal = predicted.targets & (known != 1)
    rarities = tuple(Rarity.learn(signal, EVENT_TAIL) for signal in signals[normal].T)
    judging = replace(detector.signals, rarities=rarities)
    if judging.rates:
        told = predicted.targets & np.isfinite(known)
        judging = replace(judging, odds=_learn_odds(judging, signals[told], known[told]))
    return replace(detector, signals=judging)


def _learn_odds(judging: "Signals", signals: NDArray[np.float64], known: NDArray[np.float64]) -> "Odds | None":
    """How often an event of a score without rates is anomalous, from labelled events."""
    from models.scores import Odds, surprise

    signals = signals.copy()
    signals[:, list(judging.rates)] = np.nan
    score, _ = surprise(signals, replace(judging, odds=None))
    seen = np.isfinite(score)
    return Odds.learn(score[seen], known[seen])


def _usual_runs(dataset: Dataset, steps: Steps, learned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The longest runs of equal, and of missing, readings to call normal, `(2, channels)`.

    At least a segment's length, so that no chance repetition of a coarse sensor counts. Empty for transactions, which
    have no clock.
    """
    from models.scores import absences, repeats

    if dataset.kind == "transaction":
        return np.empty(0, np.int64)
    same = repeats(steps.values, steps.observed & learned[:, None], steps.sequence)
    missing = absences(steps.observed, steps.sequence)[learned]
    longest = [runs.max(axis=0, initial=0) for runs in (same, missing)]
    return np.maximum(np.stack(longest), dataset.window.rows)


def _learn_views(
    detector: "Detector", dataset: Dataset, steps: Steps, predicted: Predicted, earlier: NDArray[np.bool_]
) -> tuple["View", ...]:
    """The views of a sensor: first the scale of each cell, then the quadratic form."""
    from models.scaler import RobustScaler
    from models.scores import View, own_levels, quadratic_form, wander

    rows = detector.scaler.rows(steps.entity, steps.names)
    scaled = detector.scaler.transform(steps.values, steps.observed, rows)
    known = replace(predicted, scaled=np.where(steps.observed, scaled, np.float32(np.nan)))
    normal = predicted.targets | earlier
    later = _later_half(steps, normal)[normal]
    moved = WANDER * wander(known.scaled[normal], steps.entity[normal], later, len(steps.names))
    views = []
    for inputs, alpha, alone in VIEWS:
        learned = normal if inputs else predicted.targets
        smoothed = smoothed_cells(alpha, steps, known, inputs=inputs)
        seen = smoothed[learned]
        scaler = RobustScaler.learn(np.nan_to_num(seen), np.isfinite(seen), steps.entity[learned], steps.names)
        scaler = replace(scaler, scale=np.maximum(scaler.scale, LEAST)).widened(moved, steps.names)
        view = View(inputs, alpha, alone, BASELINE * dataset.window_length, scaler, np.eye(seen.shape[1]))
        shown = cells(detector, view, steps, smoothed)[learned]
        views.append(replace(view, form=own_levels(shown) if alone else quadratic_form(shown, inputs=inputs)))
    return tuple(views)


def amounts(dataset: Dataset) -> tuple[tuple[int, int, bool], ...]:
    """For each feature with a ratio to history: its channel, the channel of the ratio, whether it is a logarithm."""
    ratios = {feature.of: feature.name for feature in dataset.sequence_features if feature.kind == "ratio_to_history"}
    return tuple(
        (place, dataset.channels.index(ratios[feature.name]), feature.log)
        for place, feature in enumerate(dataset.features)
        if feature.name in ratios
    )


def rates(dataset: Dataset) -> tuple[int, ...]:
    """The channels that hold a share of labelled events that were anomalous."""
    return tuple(dataset.channels.index(feature.name) for feature in dataset.label_rates)


def minor(dataset: Dataset) -> tuple[int, ...]:
    """The channels that are no measured number: categories, and sequence features but for ratios and rates."""
    measured = {feature.name for feature in dataset.features if feature.type == "numeric"}
    kinds = ("ratio_to_history", "label_rate")
    shares = {feature.name for feature in dataset.sequence_features if feature.kind in kinds}
    return tuple(n for n, channel in enumerate(dataset.channels) if channel not in measured | shares)


def covered(steps: Steps, targets: NDArray[np.bool_], dataset: Dataset) -> float:
    """How many entity-days the target steps cover, as the nights count them."""
    day = pl.col("event_time").dt.convert_time_zone(dataset.zone).dt.date().alias("day")
    return entity_days(steps.frame.filter(pl.Series(targets[steps.step])).select("entity", day), dataset)


def evaluate(
    detector: "Detector",
    dataset: Dataset,
    clean: pl.DataFrame,
    steps: Steps,
    part: NDArray[np.int64],
    scale: NDArray[np.float64] | None = None,
) -> tuple[Evaluation, Weighed]:
    """The detector on the holdout as it is, and with anomalies injected; also the undisturbed results, `relative`.

    `scale` `(channels,)` is that of what is injected into a sensor's channels; by default the detector's own.
    """
    targets = part == HOLDOUT
    judged = relative(detector, steps, targets)
    days = covered(steps, targets, dataset)
    alarms = count_alarms(judged.score, detector.threshold.value, steps, dataset)
    if dataset.kind == "sensor":
        scale = detector.scaler.scale[0] if scale is None else scale
        recall, explained, hits = _find_injected(detector, dataset, steps, targets, scale)
    else:
        recall, explained, hits = _find_injected_events(detector, dataset, clean, targets)
    return Evaluation(alarms / days, recall, explained, days, hits), judged


def count_alarms(score: NDArray[np.float64], threshold: float, steps: Steps, dataset: Dataset) -> int:
    """How many incidents a threshold makes of the scores `(n,)` of the steps, NaN where a step does not count."""
    from models.threshold import cluster_peaks

    chosen, merge = np.flatnonzero(np.isfinite(score)), dataset.merge_within.total_seconds() * 1e6
    return len(cluster_peaks(score[chosen], steps.entity[chosen], steps.time[chosen], threshold, merge))


def relative(detector: "Detector", steps: Steps, targets: NDArray[np.bool_]) -> Weighed:
    """The targets scored, over their entities' factors: what `threshold.value` is compared with."""
    judged = judge(detector, steps, targets)
    return replace(judged, score=over_factors(detector, steps, judged.score))


def over_factors(detector: "Detector", steps: Steps, score: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores `(n,)` of the steps over the factors of their entities' thresholds."""
    return score / detector.threshold.factor(steps.names)[steps.entity]


def evaluate_members(detector: "Detector", dataset: Dataset, learned: Learned) -> dict[str, Evaluation]:
    """The detector and its members on the holdout, by group, each with the entities that it scores; "": itself.

    Who has no holdout is left out, unless nobody has one.
    """
    part, rows = learned.part[learned.steps.step], learned.clean.with_row_index("_row")
    found = {}
    for group, member, own in by_member(detector, rows):
        steps = build_steps(own.drop("_row"), dataset, member.encodings)
        own_part = part[own["_row"].to_numpy()][steps.first]
        if (own_part == HOLDOUT).any():
            found[group] = evaluate(member, dataset, own.drop("_row"), steps, own_part)[0]
    return found or {"": evaluate(detector, dataset, learned.clean, learned.steps, learned.part)[0]}


def together(evaluations: Collection[Evaluation]) -> Evaluation:
    """One for several detectors: false alarms per entity and day of all, the means of the shares that were found."""
    days = sum(one.entity_days for one in evaluations)
    kinds = sorted({kind for one in evaluations for kind in one.recall})
    return Evaluation(
        realised=sum(one.realised * one.entity_days for one in evaluations) / days,
        recall={kind: _mean([one.recall.get(kind, np.nan) for one in evaluations]) for kind in kinds},
        explained=_mean([one.explained for one in evaluations]),
        entity_days=days,
        hits=tuple(hit for one in evaluations for hit in one.hits),
    )


def _mean(shares: list[float]) -> float:
    """The mean of those that are known; NaN where none is."""
    known = [share for share in shares if np.isfinite(share)]
    return float(np.mean(known)) if known else float("nan")


Told = tuple[dict[str, float], float, tuple[bool, ...]]
"""What `Evaluation` holds as recall, explained and hits."""


def _find_injected(
    detector: "Detector", dataset: Dataset, steps: Steps, targets: NDArray[np.bool_], scale: NDArray[np.float64]
) -> Told:
    """What is found of the anomalies injected into stretches; their kinds take turns."""
    from models.injections import AMONG_OTHERS, INJECTIONS

    rng = np.random.default_rng(dataset.model.seed)
    kinds = [kind for kind in INJECTIONS if len(detector.channels) > 1 or kind not in AMONG_OTHERS]
    stretches = _stretches(steps, targets, dataset, rng)
    values = np.where(steps.observed, steps.values, np.float32(np.nan))
    for n, stretch in enumerate(stretches):
        inject = INJECTIONS[kinds[n % len(kinds)]]
        values[stretch] = inject(values[stretch].astype(np.float64), scale, rng)
    observed = np.isfinite(values)
    disturbed = replace(steps, values=np.where(observed, values, 0).astype(np.float32), observed=observed)
    judged = relative(detector, disturbed, targets)
    changed = (disturbed.values != steps.values) | (observed != steps.observed)
    drivers = [set(np.flatnonzero(changed[stretch].any(axis=0)).tolist()) for stretch in stretches]
    return _tell_found(judged, detector.threshold.value, stretches, kinds, drivers)


def _find_injected_events(
    detector: "Detector", dataset: Dataset, clean: pl.DataFrame, targets: NDArray[np.bool_]
) -> Told:
    """The same for transactions: one event of a card is disturbed, and what follows from its history with it."""
    from models.injections import EVENT_INJECTIONS

    rng = np.random.default_rng(dataset.model.seed)
    rows = clean.with_row_index("_row").filter(pl.Series(targets))
    chosen = rows.sample(fraction=1, shuffle=True, seed=dataset.model.seed).unique("entity", maintain_order=True)
    drivers = _event_drivers(dataset)
    names = [name for name in EVENT_INJECTIONS if drivers[name]]
    amount, category = ([c for c in drivers[kind] if c in clean.columns] for kind in ("amount", "merchant"))
    made = []
    for n, row in enumerate(chosen.head(INJECTED if names else 0)["_row"]):
        event = EVENT_INJECTIONS[names[n % len(names)]](clean[row], amount, category, rng)
        made.append(event.with_columns(pl.lit(n).alias("_injected"), pl.lit(row).alias("_row")))
    if not made:
        return {}, float("nan"), ()
    injected = pl.concat(made)
    kept = clean.with_row_index("_row").join(injected.select("_row"), on="_row", how="anti").drop("_row")
    disturbed = pl.concat([kept, injected.select(kept.columns)])
    steps = build_steps(disturbed, dataset, detector.encodings)
    marks = injected.select("entity", "event_time", "_injected").unique(["entity", "event_time"])
    number = steps.frame.join(marks, on=["entity", "event_time"], how="left", maintain_order="left")["_injected"]
    which = number.fill_null(-1).to_numpy()
    judged = relative(detector, steps, which >= 0)
    stretches = [np.flatnonzero(which == n) for n in range(len(made))]
    tell = [{dataset.channels.index(channel) for channel in drivers[name]} for name in names]
    told = [tell[n % len(names)] for n in range(len(made))]
    return _tell_found(judged, detector.threshold.value, stretches, names, told)


def _event_drivers(dataset: Dataset) -> dict[str, list[str]]:
    """For each kind of injected event the channels that tell it; none where the dataset has nothing of the kind."""
    kinds = {feature.name: feature.kind for feature in dataset.sequence_features}
    pairs = amounts(dataset)
    return {
        "amount": [dataset.channels[channel] for amount, ratio, _ in pairs for channel in (amount, ratio)],
        "velocity": [name for name, kind in kinds.items() if kind not in ("ratio_to_history", "label_rate")],
        "merchant": [feature.name for feature in dataset.features if feature.type == "categorical"],
    }


def _tell_found(
    judged: Weighed,
    threshold: float,
    stretches: list[NDArray[np.int64]],
    kinds: list[str],
    drivers: list[set[int]],
) -> Told:
    """The share of the disturbed stretches that is found, by kind, as the kinds take turns.

    And of those found the share in which one of the stretch's `drivers` (numbers of channels) contributes most.
    """
    hit = [bool(np.nanmax(judged.score[stretch], initial=0) > threshold) for stretch in stretches]
    right = [
        _first_driver(judged, stretch) in channels
        for stretch, channels, found in zip(stretches, drivers, hit, strict=True)
        if found
    ]
    recall = {kind: float(np.mean(hit[n :: len(kinds)])) for n, kind in enumerate(kinds) if hit[n :: len(kinds)]}
    return recall, float(np.mean(right)) if right else float("nan"), tuple(hit)


def _first_driver(judged: Weighed, stretch: NDArray[np.int64]) -> int:
    """The channel that contributes most where the stretch scores highest."""
    return int(np.nanargmax(judged.contribution[stretch[np.nanargmax(judged.score[stretch])]]))


def _stretches(
    steps: Steps, targets: NDArray[np.bool_], dataset: Dataset, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Stretches of target steps of one sequence each, at least a window apart, so that one cannot disturb another."""
    length = 2 * dataset.window.rows if dataset.kind == "sensor" else 3
    chosen = np.flatnonzero(targets)
    edges = np.flatnonzero(np.diff(steps.sequence[chosen])) + 1
    found = []
    for run in np.split(chosen, edges):
        begins = np.arange(length, len(run) - length + 1, dataset.window_length + length)
        found += [run[begin : begin + length] for begin in begins]
    picked = rng.permutation(len(found))[:INJECTED]
    return [found[n] for n in sorted(picked)]


def _about(ws: Workspace, start: datetime, end: datetime) -> dict[str, Any]:
    return {
        "dataset": ws.dataset.model_dump(mode="json", exclude={"source", "notify"}),
        "from": start.astimezone(UTC).isoformat(),
        "to": end.astimezone(UTC).isoformat(),
    }


def _log_inputs(
    ws: Workspace, run: str, start: datetime, end: datetime, clean: pl.DataFrame, cause: str | None
) -> None:
    import mlflow

    dataset = ws.dataset
    groups = ("window", "model", "training", "threshold")
    settings = logbook.flat({group: getattr(dataset, group).model_dump(mode="json") for group in groups})
    facts = {"from": start.isoformat(), "to": end.isoformat(), "rows": len(clean), "channels": len(dataset.channels),
             "entities": clean["entity"].n_unique(), "config_digest": dataset.digest()}  # fmt: skip
    mlflow.log_params({**settings, **facts})
    tables = [table for table in ("landing", "clean", "quarantine", "labels") if ws.lake.exists(table)]
    versions = {f"delta_version.{table}": str(ws.lake.version(table)) for table in tables}
    mlflow.set_tags({**versions, "data_window": f"{start.isoformat()} to {end.isoformat()}"})
    if cause:
        mlflow.set_tag("cause", cause)
    tracking.log_used(ws, run, [logbook.training_input(ws, start, end, len(clean))])


def _register(ws: Workspace, learned: Learned, run: str) -> Trained:
    """Evaluate the detector, log it to the MLflow run `run`, register it, and compare it with the champion."""
    import mlflow

    from pipeline.promotion import compare

    detector, steps, part = learned.detector, learned.steps, learned.part
    evaluation, judged = evaluate(detector, ws.dataset, learned.clean, steps, part)
    threshold = detector.threshold
    if detector.members:
        by_group = evaluate_members(detector, ws.dataset, learned)
        evaluation = together(by_group.values())
        _log_members(detector, by_group)
    mlflow.log_metrics({
        "threshold": threshold.value, "false_alarms_promised": threshold.budget,
        "false_alarms_aimed": threshold.aimed,
        "false_alarms_on_calibration": threshold.expected, "false_alarms_on_holdout": evaluation.realised,
        "holdout_entity_days": evaluation.entity_days, "injected_explained": evaluation.explained,
        **{f"injected_recall.{kind}": value for kind, value in evaluation.recall.items()},
    })  # fmt: skip
    calibrated = over_factors(detector, steps, learned.calibrated)
    tracking.log_figure(figures.calibration(calibrated, judged.score, threshold), "calibration")
    over = {
        name: logbook.score_histogram(pl.LazyFrame({"score": score, "threshold": threshold.value}))
        for name, score in (("calibration", calibrated), ("holdout", judged.score))
    }
    tracking.log_figure(figures.scores(f"Scores of {ws.dataset.name}", over), "scores")
    with TemporaryDirectory(prefix="nightsift-") as scratch:
        folder = Path(scratch) / "detector"
        detector.save(folder)
        tags = {"data_window": f"{detector.about['from']} to {detector.about['to']}"}
        note, rows = logbook.version_note(detector, evaluation.injected_recall), logbook.example(ws.dataset, detector)
        version = tracking.register(ws, folder, weights_digest(detector), tags, note, rows)
    comparison = compare(ws, version.label, evaluation, learned)
    mlflow.log_text(comparison.table, "comparison.md")
    mlflow.log_dict(comparison.facts, "comparison.json")
    return Trained(
        version=version.label, promoted=False, reason=comparison.reason, steps=int((part != BEFORE).sum()),
        entities=len(steps.names), threshold=threshold.value,
        budget=threshold.budget, realised=evaluation.realised, injected_recall=evaluation.injected_recall, seconds=0.0,
        better=comparison.better, table=comparison.table, run=run,
    )  # fmt: skip


def _log_members(detector: "Detector", by_group: Mapping[str, Evaluation]) -> None:
    """Log how far the detectors of the groups, and the one of all others, are apart: the worst, and a table of all."""
    import mlflow

    found = [one.injected_recall for one in by_group.values() if one.injected_recall is not None]
    mlflow.log_metrics({
        "members": len(detector.members),
        "false_alarms_on_holdout.worst": max(one.realised for one in by_group.values()),
        **({"injected_recall.worst": min(found)} if found else {}),
    })  # fmt: skip
    rows = {
        group or "all others": {
            "threshold": detector.members.get(group, detector).threshold.value,
            "false_alarms_on_holdout": one.realised,
            "holdout_entity_days": one.entity_days,
            "injected_recall": one.injected_recall,
        }
        for group, one in by_group.items()
    }
    mlflow.log_dict(rows, "members.json")


def weights_digest(detector: "Detector") -> str:
    """16 hex digits of what the detector has learned."""
    state = hashlib.sha256()
    for one in (detector, *detector.members.values()):
        learned = one.threshold
        own = (factor for entity in (learned.factors, learned.adapted) for _, factor in sorted(entity.items()))
        threshold = np.array([learned.value, *learned.rarity.quantiles, *own])
        forms = (view.form for view in one.views)
        for array in (*one.model.get_weights(), one.scaler.center, *forms, threshold):
            state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()[:16]
