"""The simulator: the same seed gives the same files, and the labels say what is abnormal in them."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.config import load_dataset
from pipeline.errors import ConfigError
from pipeline.simulate import Simulated, read_labels, read_planted, simulate
from pipeline.simulate.plan import stream
from pipeline.simulate.pumps import SENSORS, Faults, build_fleet, lag, motor_current, operate, slow_noise

DATASETS = Path(__file__).parents[2] / "datasets"
SIZES = {"pumps": 12, "cards": 300}
KINDS = sorted(SIZES)


def run(kind: str, folder: Path, *, days: int = 4, seed: int = 3, **more) -> Simulated:
    return simulate(kind, days=days, entities=SIZES[kind], seed=seed, folder=folder, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}


def read(kind: str, files: list[Path] | tuple[Path, ...]) -> pl.DataFrame:
    reader = pl.read_parquet if kind == "pumps" else lambda file: pl.read_csv(file, try_parse_dates=True)
    return pl.concat([reader(file) for file in files])


def named(outcome: Simulated, part: str) -> list[Path]:
    return [file for file in outcome.files if part in file.name]


def keys(kind: str) -> list[str]:
    return ["pump", "time"] if kind == "pumps" else ["payment"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(kind, tmp_path):
    """A run is a function of its arguments."""
    options = {"late": True, "duplicates": True, "broken": True, "silent": True, "anomalies": 0.2}
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(kind, tmp_path / folder, seed=seed, **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.parametrize("kind", KINDS)
def test_a_day_is_the_same_whichever_call_writes_it(kind, tmp_path):
    """More days, or only some of the days, change no byte of a day's files and labels."""
    options = {"late": 1, "duplicates": 2, "broken": 1, "silent": 2, "anomalies": 0.2}
    run(kind, tmp_path / "whole", days=4, **options)
    run(kind, tmp_path / "longer", days=6, **options)
    for night in range(4):
        run(kind, tmp_path / "nightly", days=4, only_days=range(night, night + 1), **options)
    whole, longer = contents(tmp_path / "whole"), contents(tmp_path / "longer")
    assert whole == contents(tmp_path / "nightly")
    assert whole == {name: longer[name] for name in whole}
    assert len(longer) > len(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_one_file_a_day_and_no_label_in_the_glob(kind, tmp_path):
    """The dataset's glob finds the day files, and nothing else."""
    outcome = run(kind, tmp_path, days=3)
    glob = Path(load_dataset(kind, DATASETS).source.path).name
    assert sorted(tmp_path.glob(glob)) == sorted(outcome.files)
    assert [file.name[len(kind) + 1 :][:10] for file in outcome.files] == ["2026-03-02", "2026-03-03", "2026-03-04"]
    assert outcome.rows == read(kind, outcome.files).height == read_labels(tmp_path).height
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_lie_in_their_day_and_within_the_bounds_of_the_yaml(kind, tmp_path):
    """Unbroken rows pass the dataset's own limits, have an entity and a time, and are unique."""
    outcome = run(kind, tmp_path, days=3, anomalies=0.5)
    for file in outcome.files:
        assert set(read(kind, [file])["time"].dt.date().cast(pl.String)) == {file.name[len(kind) + 1 :][:10]}
    dataset, frame = load_dataset(kind, DATASETS), read(kind, outcome.files)
    assert frame.select(dataset.entity, dataset.event_time).null_count().sum_horizontal().item() == 0
    assert frame.select(keys(kind)).is_unique().all()
    for feature in dataset.features:
        column = frame[feature.column].drop_nulls()
        assert len(column) > 0.97 * frame.height
        if feature.type == "numeric":
            assert column.is_finite().all()
            assert feature.min <= column.min() < column.max() <= feature.max


@pytest.mark.parametrize("kind", KINDS)
def test_planted_incidents_are_all_that_changes(kind, tmp_path):
    """Rows that are labelled normal are what they are without any incident; labels and list of incidents agree."""
    calm = run(kind, tmp_path / "calm", days=6, anomalies=0)
    hit = run(kind, tmp_path / "hit", days=6, anomalies=0.2, anomalies_from=2)
    labels, planted = read_labels(tmp_path / "hit"), read_planted(tmp_path / "hit")
    assert calm.planted == ()
    assert planted.height == len(hit.planted) > 0
    assert planted["day"].min() == date(2026, 3, 4)
    assert planted["rows"].sum() == labels["is_anomaly"].sum()
    assert (labels["kind"].is_not_null() == labels["is_anomaly"]).all()
    for each in hit.planted:
        span = labels.filter(pl.col("is_anomaly"), pl.col("entity") == each.entity,
                             pl.col("event_time").is_between(each.start, each.end))  # fmt: skip
        assert (span.height, set(span["kind"])) == (each.rows, {each.kind})
        assert 2 <= each.start.hour <= each.end.hour < 22
    entity = "pump" if kind == "pumps" else "card"
    normal = labels.filter(~pl.col("is_anomaly"))
    on = {"pumps": ["entity", "event_time"], "cards": ["event_id"]}[kind]
    frame = read(kind, hit.files).join(normal, left_on=keys(kind), right_on=on, how="semi")
    columns = [column for column in frame.columns if column != "payment"]
    before = read(kind, calm.files).select(columns)
    if kind == "cards":
        assert frame.select(columns).sort(columns).equals(before.sort(columns))
        return
    merged = frame.join(before, on=[entity, "time"], how="left", suffix="_calm")
    after_effect = {"bearing_temperature": 1.0, "motor_temperature": 8.0}  # K: what was warmed up cools down
    for sensor in SENSORS:
        assert (merged[sensor] - merged[f"{sensor}_calm"]).abs().max() <= after_effect.get(sensor, 0)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Every planted fault of a fleet beside the same readings of the same fleet without it: `(planted, frame)`."""
    root = tmp_path_factory.mktemp("faulty")
    hit = simulate("pumps", days=4, entities=30, seed=5, folder=root / "hit", anomalies=0.5)
    calm = simulate("pumps", days=4, entities=30, seed=5, folder=root / "calm", anomalies=0)
    both = read("pumps", hit.files).join(read("pumps", calm.files), on=["pump", "time"], suffix="_calm")
    return hit.planted, both


def spans(faulty, kind: str) -> list[tuple[tuple[str, ...], pl.DataFrame]]:
    planted, both = faulty
    found = [
        (each.features, both.filter(pl.col("pump") == each.entity, pl.col("time").is_between(each.start, each.end)))
        for each in planted
        if each.kind == kind
    ]
    assert len(found) >= 8
    return found


def ratio(frame: pl.DataFrame, sensor: str) -> float:
    return frame[sensor].mean() / frame[f"{sensor}_calm"].mean()


def test_a_leak_lowers_flow_and_pressure_and_raises_the_current(faulty):
    """The pump delivers more, the meters see less."""
    for _, frame in spans(faulty, "leak"):
        assert ratio(frame, "flow") < 0.985
        assert ratio(frame, "pressure") < 0.99
        assert ratio(frame, "current") > 1.01


def test_cavitation_shakes_and_costs_head(faulty):
    """Vibration is up and flutters; flow, pressure are down."""
    for _, frame in spans(faulty, "cavitation"):
        assert ratio(frame, "vibration") > 1.5
        assert frame["vibration"].std() > 2 * frame["vibration_calm"].std()
        assert ratio(frame, "flow") < 0.98
        assert ratio(frame, "pressure") < 0.98


def test_bearing_wear_grows_and_heats(faulty):
    """Vibration and bearing temperature rise during the incident and have settled at its end."""
    for _, frame in spans(faulty, "bearing_wear"):
        warmer = (frame["bearing_temperature"] - frame["bearing_temperature_calm"]).drop_nulls()
        assert warmer.max() > 5
        assert warmer[:5].mean() < 1
        assert warmer[-1] < 0.15 * warmer.max()
        assert ratio(frame, "vibration") > 1.2


def test_a_stuck_sensor_repeats_one_value_and_touches_no_other(faulty):
    """Only the named sensor stands still."""
    for (sensor,), frame in spans(faulty, "stuck_sensor"):
        assert frame[sensor].n_unique() == 1
        for other in set(SENSORS) - {sensor}:
            assert frame[other].drop_nulls().equals(frame[f"{other}_calm"].drop_nulls()) or _lost(frame, other)
            assert frame[other].n_unique() > 5


def _lost(frame: pl.DataFrame, sensor: str) -> bool:
    """Whether the two differ only where the calm fleet lost a reading (none is lost within an incident)."""
    seen = frame.drop_nulls(f"{sensor}_calm")
    return seen[sensor].equals(seen[f"{sensor}_calm"])


def test_a_drift_leads_one_sensor_away(faulty):
    """The named sensor's error grows over hours to a tenth of its usual value or more, and no other sensor errs."""
    for (sensor,), frame in spans(faulty, "drift"):
        seen = frame.drop_nulls(f"{sensor}_calm")
        error = (seen[sensor] - seen[f"{sensor}_calm"]).abs().to_numpy()
        assert frame.height >= 180
        assert np.corrcoef(np.arange(len(error)), error)[0, 1] > 0.99
        assert error[-1] > 0.08 * seen[f"{sensor}_calm"].mean()
        assert all(_lost(frame, other) for other in set(SENSORS) - {sensor})


def test_nothing_is_missing_within_a_fault(faulty):
    """A missing reading is no anomaly, and an anomaly has no missing reading."""
    planted, both = faulty
    for each in planted:
        inside = both.filter(pl.col("pump") == each.entity, pl.col("time").is_between(each.start, each.end))
        assert inside.select(SENSORS).null_count().sum_horizontal().item() == 0
    assert both.select(SENSORS).null_count().sum_horizontal().item() > 0


def test_affinity_laws():
    """Without a static lift flow grows with the speed, head with its square, power with its cube."""
    fleet = build_fleet(5, seed=1)
    free = np.zeros((1, 1))

    def at(speed: float):
        return operate(fleet, np.full((1, 1), speed), np.ones((1, 1)), Faults(), free, static=0.0)

    low, high = at(0.8), at(1.0)
    np.testing.assert_allclose(high.flow / low.flow, 1 / 0.8)
    np.testing.assert_allclose(high.head / low.head, 1 / 0.8**2)
    np.testing.assert_allclose(high.power / low.power, 1 / 0.8**3)


def test_the_rated_point_is_the_best_point():
    """At rated speed a new pump delivers its rated flow and head; the power is ρ·g·Q·H over efficiency."""
    fleet, one = build_fleet(5, seed=1), np.ones((1, 1))
    duty = operate(fleet, one, one, Faults(), np.zeros((1, 1)))
    np.testing.assert_allclose(duty.flow, fleet.flow)
    np.testing.assert_allclose(duty.head, fleet.head)
    np.testing.assert_allclose(duty.ratio, 1)
    np.testing.assert_allclose(duty.power, 1000 * 9.81 * fleet.flow / 3600 * fleet.head / fleet.efficiency / 1000)


def test_motor_current_grows_with_power_from_the_magnetising_current():
    """An idle motor still draws its magnetising current; a three-phase motor of 40 kW at 400 V draws about 72 A."""
    rated = np.array([[40.0]])
    idle, half, full = (motor_current(rated * share, rated).item() for share in (0, 0.5, 1))
    assert 0 < idle < half < full
    assert full == pytest.approx(40e3 / (np.sqrt(3) * 400 * 0.86 * 0.93) * np.hypot(1, 0.35))


def test_lag_reaches_63_percent_after_its_time_constant():
    """The step response of a first-order lag."""
    step = np.concatenate([[0.0], np.ones(200)])[None, :]
    assert lag(step, 20)[0, 20] == pytest.approx(1 - np.exp(-1), abs=1e-6)
    assert lag(np.full((1, 50), 7.0), 20)[0] == pytest.approx(7)


def test_days_join_smoothly():
    """Slow noise and true temperatures go on over midnight although each day is made by itself."""
    first, second = slow_noise(1, "x", 4, 3), slow_noise(1, "x", 5, 3)
    np.testing.assert_allclose(first[:, -240:], second[:, :240], atol=1e-3)
    assert 0.7 < np.std(np.hstack([slow_noise(1, "x", day, 20) for day in range(8)])) < 1.3


def test_temperatures_follow_the_load_and_go_on_over_midnight(tmp_path):
    """The more flow the more current and heat; no sensor jumps at midnight."""
    outcome = simulate("pumps", days=3, entities=6, seed=2, folder=tmp_path, anomalies=0)
    frame = read("pumps", outcome.files).sort("pump", "time").drop_nulls()
    for _, one in frame.group_by("pump"):
        assert np.corrcoef(one["flow"], one["current"])[0, 1] > 0.9
        assert np.corrcoef(one["current"], one["motor_temperature"])[0, 1] > 0.5
    jumps = frame.with_columns(
        pl.col("motor_temperature").diff().abs().over("pump").alias("jump"),
        (pl.col("time").dt.date() != pl.col("time").shift().over("pump").dt.date()).alias("midnight"),
    )
    assert jumps.filter("midnight")["jump"].max() <= jumps.filter(~pl.col("midnight"))["jump"].max()


def test_older_pumps_shake_more(tmp_path):
    """Wear comes with age: vibration over that of the same machine when new."""
    outcome = simulate("pumps", days=1, entities=60, seed=1, folder=tmp_path, anomalies=0)
    mean = read("pumps", outcome.files).group_by("pump").agg(pl.col("vibration").mean()).sort("pump")["vibration"]
    fleet = build_fleet(60, seed=1)
    assert np.corrcoef(mean.to_numpy() / fleet.smoothness[:, 0], fleet.age[:, 0])[0, 1] > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_late_rows_and_the_main_files_are_the_undisturbed_rows(kind, tmp_path):
    """Late rows are missing in their day's file, arrive in the next day's late file, and belong to no incident."""
    plain = run(kind, tmp_path / "plain", anomalies=0.2)
    late = run(kind, tmp_path / "late", anomalies=0.2, late=1)
    (file,) = named(late, "-late")
    assert file.name.startswith(f"{kind}-2026-03-04-late")
    held = read(kind, [file])
    (told,) = late.disturbances
    entity = "pump" if kind == "pumps" else "card"
    assert (told.kind, told.day, told.rows, told.file) == ("late", date(2026, 3, 3), held.height, file)
    assert set(told.entities) == set(held[entity])
    assert held["time"].min() >= datetime(2026, 3, 3, 12, tzinfo=UTC)
    assert held["time"].max() < datetime(2026, 3, 4, tzinfo=UTC)
    assert not set(told.entities) & {each.entity for each in late.planted if each.day == told.day}
    by = keys(kind)
    assert read(kind, late.files).sort(by).equals(read(kind, plain.files).sort(by))
    assert not read(kind, named(late, "2026-03-03")).join(held, on=by, how="semi").height
    assert contents(tmp_path / "plain" / "labels").keys() == contents(tmp_path / "late" / "labels").keys()


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_are_exact(kind, tmp_path):
    """Some rows stand twice, in every column, and nothing else changes."""
    plain = run(kind, tmp_path / "plain", anomalies=0.2)
    twice = run(kind, tmp_path / "twice", anomalies=0.2, duplicates=True)
    (told,) = twice.disturbances
    frame = read(kind, twice.files)
    assert frame.height - plain.rows == told.rows > 0
    assert frame.unique(maintain_order=True).equals(read(kind, plain.files))
    assert told.file == twice.files[-1]


def test_broken_pump_rows_cannot_be_right(tmp_path):
    """Exactly the told number of rows has no pump, no time, a value outside the bounds, or a text for a number."""
    plain = run("pumps", tmp_path / "plain")
    broken = run("pumps", tmp_path / "broken", broken=2)
    (told,) = broken.disturbances
    main, text = (read("pumps", [file]) for file in named(broken, "2026-03-04"))
    wrong = pl.col("pump").is_null() | pl.col("time").is_null()
    for feature in load_dataset("pumps", DATASETS).features:
        wrong |= ~pl.col(feature.column).is_between(feature.min, feature.max)
    numbers = text.with_columns(pl.col(SENSORS).cast(pl.Float64, strict=False))
    unreadable = numbers["pressure"].is_null() & text["pressure"].is_not_null()
    assert main.filter(wrong.fill_null(False)).height + unreadable.sum() == told.rows == 8
    assert text["pressure"].filter(unreadable).sort().to_list() == ["12,4 bar", "ERR 17"]
    right = pl.concat([main.filter(~wrong.fill_null(False)), numbers.filter(~unreadable)]).sort("pump", "time")
    before = read("pumps", named(plain, "2026-03-04")).sort("pump", "time")
    assert right.equals(before.join(right, on=["pump", "time"], how="semi"))
    assert broken.rows == plain.rows


def test_broken_payments_cannot_be_right(tmp_path):
    """Exactly the told number of rows has no card, an unreadable time or number, or one outside the bounds."""
    plain = run("cards", tmp_path / "plain")
    broken = run("cards", tmp_path / "broken", broken=2)
    (told,) = broken.disturbances
    (file,) = named(broken, "2026-03-04")
    frame = pl.read_csv(file, infer_schema=False)
    wrong = pl.col("card").is_null() | pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", strict=False).is_null()
    for feature in load_dataset("cards", DATASETS).features:
        if feature.type == "numeric":
            number = pl.col(feature.column).cast(pl.Float64, strict=False)
            unreadable = number.is_null() & pl.col(feature.column).is_not_null()
            wrong |= unreadable | ~number.is_between(feature.min, feature.max).fill_null(True)
    assert frame.filter(wrong).height == told.rows == 7
    right = frame.filter(~wrong).sort("payment")
    before = pl.read_csv(named(plain, "2026-03-04")[0], infer_schema=False).sort("payment")
    assert right.equals(before.join(right, on="payment", how="semi"))
    assert broken.rows == plain.rows


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_entity_sends_nothing_from_its_day_on(kind, tmp_path):
    """The other entities' rows and the days before are untouched; no incident is planted on the silent one."""
    plain = run(kind, tmp_path / "plain")
    silent = run(kind, tmp_path / "silent", silent=2)
    (entity,) = {name for told in silent.disturbances for name in told.entities}
    assert [told.day.day for told in silent.disturbances] == [4, 5]
    column = "pump" if kind == "pumps" else "card"
    before, now = read(kind, plain.files), read(kind, silent.files)
    gone = (pl.col(column) == entity) & (pl.col("time") >= datetime(2026, 3, 4, tzinfo=UTC))
    assert not now.filter(gone).height
    if kind == "pumps":
        assert now.equals(before.filter(~gone))
    assert not [each for each in silent.planted if each.entity == entity and each.day >= date(2026, 3, 4)]
    assert (
        not read_labels(tmp_path / "silent")
        .filter(pl.col("entity") == entity, pl.col("event_time") >= datetime(2026, 3, 4, tzinfo=UTC))
        .height
    )


@pytest.fixture(scope="module")
def payments(tmp_path_factory):
    """Four weeks of payments with frauds, and their labels beside each row: `(outcome, frame)`."""
    folder = tmp_path_factory.mktemp("cards")
    outcome = simulate("cards", days=28, entities=400, seed=8, folder=folder, anomalies=0.02, anomalies_from=14)
    labels = read_labels(folder).select("event_id", "is_anomaly", fraud="kind")
    return outcome, read("cards", outcome.files).join(labels, left_on="payment", right_on="event_id")


def frauds(payments, kind: str) -> list[tuple[object, pl.DataFrame, pl.DataFrame]]:
    """Each planted fraud of a kind: what was planted, its payments, and the card's normal payments."""
    outcome, frame = payments
    parts = []
    for each in outcome.planted:
        if each.kind == kind:
            own = frame.filter(pl.col("card") == each.entity)
            during = own.filter("is_anomaly", pl.col("time").is_between(each.start, each.end))
            parts.append((each, during, own.filter(~pl.col("is_anomaly"))))
    assert len(parts) >= 10
    return parts


def test_holders_have_a_rhythm_and_short_and_long_histories(payments):
    """Saturdays beat Sundays, evenings beat nights; some cards start late; favourites take most visits."""
    _, frame = payments
    frame = frame.filter(~pl.col("is_anomaly"))
    weekdays = frame.group_by(pl.col("time").dt.weekday()).len().sort("time")["len"].to_list()
    assert weekdays[5] > 1.3 * weekdays[6]
    hours = frame["time"].dt.hour()
    assert (hours.is_between(16, 18)).sum() > 10 * (hours.is_between(2, 4)).sum()
    first = frame.group_by("card").agg(pl.col("time").min())["time"].dt.date()
    assert 0.03 < (first > date(2026, 3, 9)).mean() < 0.25
    visits = frame.filter(pl.col("category") == "groceries").group_by("card", "terminal").len()
    favourite = visits.group_by("card").agg(pl.col("len").max() / pl.col("len").sum(), n=pl.col("len").sum())
    assert favourite.filter(pl.col("n") >= 10)["len"].median() > 0.4


def test_a_stolen_card_is_spent_fast_and_far_away(payments):
    """Five payments or more in three hours, far from the holder's usual places and above usual amounts."""
    for each, during, own in frauds(payments, "stolen_card"):
        assert during.height == each.rows >= 5
        assert (each.end - each.start).total_seconds() <= 3 * 3600
        assert during["distance"].min() > 35
        if own.height >= 10:
            assert during["amount"].median() > 2 * own["amount"].median()


def test_cloned_cards_are_regulars_of_the_terminal_that_copied_them(payments):
    """Several victims of one origin, which most of them used before; their frauds share two terminals far away."""
    groups: dict[tuple[date, str], list] = {}
    used = 0
    parts = frauds(payments, "compromised_terminal")
    for each, during, own in parts:
        groups.setdefault((each.day, each.origin), []).append(during)
        used += each.origin in set(own.filter(pl.col("time") < each.start)["terminal"])
        assert during["distance"].min() > 350
    assert used > 0.8 * len(parts)
    assert max(len(group) for group in groups.values()) >= 3
    for group in groups.values():
        cases = -(-len(group) // 5)  # a terminal that copied more cards than five did so in two cases on one day
        assert pl.concat(group)["terminal"].n_unique() <= 2 * cases


def test_test_charges_are_tiny_quick_and_at_one_odd_terminal(payments):
    """Five charges or more of a few euros at most, online, within twelve minutes."""
    for each, during, _ in frauds(payments, "test_charges"):
        assert during.height >= 5
        assert during["amount"].max() <= 2.5
        assert during["terminal"].n_unique() == 1
        assert set(during["category"]) == {"online"}
        assert (each.end - each.start).total_seconds() <= 720


def test_limit_probing_raises_the_amount(payments):
    """Five attempts or more at one terminal within three quarters of an hour, each above the one before."""
    for each, during, _ in frauds(payments, "limit_probing"):
        assert during.height >= 5
        assert (during.sort("time")["amount"].diff().drop_nulls() > 0).all()
        assert during["terminal"].n_unique() == 1
        assert (each.end - each.start).total_seconds() <= 2700


def test_no_single_threshold_finds_the_frauds(payments):
    """On amount or distance alone, catching half of the frauds also flags more normal payments than frauds."""
    _, frame = payments
    fraud, normal = frame.filter("is_anomaly"), frame.filter(~pl.col("is_anomaly"))
    limit = fraud["amount"].median()
    assert (normal["amount"] > limit).sum() > 0.5 * (fraud["amount"] > limit).sum()
    assert (normal["distance"].fill_null(0) > fraud["distance"].quantile(0.1)).sum() > 100


def test_kinds_take_turns_so_that_every_kind_comes():
    """Three incidents a night plant all five kinds within two nights."""
    from pipeline.simulate.plan import choose
    from pipeline.simulate.pumps import KINDS as FAULTS

    kinds = {choose(1, day, 20, 0.15, None).kind(position, FAULTS) for day in (5, 6) for position in range(3)}
    assert kinds == set(FAULTS)
    assert {choose(1, day, 20, 0.15, None).count for day in range(30)} == {3}


def test_streams_are_independent():
    """Another purpose, day or seed is another stream; the same is the same."""
    drawn = [stream(*place).random() for place in ((1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0))]
    assert len(set(drawn)) == 4
    assert stream(1, "a", 0).random() == drawn[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "turbines"}, "not 'turbines'"),
        ({"days": 0}, "1 day or more"),
        ({"anomalies": 1.5}, "from 0 to 1"),
        ({"late": 3}, "late rows arrive on the next day"),
        ({"broken": [1, 4]}, "day index 4"),
        ({"silent": [1, 2]}, "one day index"),
        ({"only_days": range(3, 6)}, "day index 4"),
        ({"days": 1, "late": True}, "too few days"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(arguments, words, tmp_path):
    """Nothing is written, and the message says what is possible."""
    with pytest.raises(ConfigError, match=words):
        simulate(**({"kind": "pumps", "days": 4, "entities": 3, "seed": 1, "folder": tmp_path / "x"} | arguments))
    assert not (tmp_path / "x").exists()
