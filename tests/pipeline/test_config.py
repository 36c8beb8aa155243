"""A dataset's YAML: what it may hold, what follows from it, and how an error in it is told."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import (
    RESERVED,
    CalendarEntry,
    Dataset,
    Home,
    dataset_names,
    datasets_dir,
    format_duration,
    load_dataset,
    parse_duration,
)
from pipeline.errors import ConfigError

SENSOR: dict[str, Any] = {
    "kind": "sensor",
    "source": {"path": "{home}/x/*.parquet"},
    "entity": "pump",
    "event_time": "time",
    "cadence": "1m",
    "features": [{"name": "flow", "min": 0, "max": 400}, {"name": "heat"}],
}
EVENTS: dict[str, Any] = {
    "kind": "transaction",
    "source": {"path": "x.csv"},
    "entity": "card",
    "event_time": "time",
    "features": [{"name": "amount", "min": 0, "log": True}, {"name": "shop", "type": "categorical"}],
    "sequence_features": [{"name": "since_last", "kind": "time_since_last"}],
}
LABELS = {"path": "y.csv", "event_id": "id", "label": "fraud", "delay": "7d"}
RISK = {"name": "risk", "kind": "label_rate", "of": "shop", "over": "7d"}


def dataset(base: dict[str, Any] = SENSOR, **changes: Any) -> Dataset:
    return Dataset(**{"name": "demo", **base, **changes})


def load(folder: Path, content: Any) -> Dataset:
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / "demo.yaml").write_text(text, encoding="utf-8")
    return load_dataset("demo", folder)


def test_a_scope_keeps_its_groups_in_order_with_names_as_text(tmp_path: Path) -> None:
    """Entities that YAML reads as numbers are names all the same."""
    text = yaml.safe_dump(SENSOR) + "model: {scope: {old: [7, well-2*], deep: [well-1]}}"
    loaded = load(tmp_path, text)
    assert loaded.model.scope == {"old": ["7", "well-2*"], "deep": ["well-1"]}
    assert list(loaded.model.scope) == ["old", "deep"]


def test_shipped_datasets_load() -> None:
    """The two datasets of the project are valid, and named by their files."""
    folder = Path(__file__).parents[2] / "datasets"
    assert {"cards", "pumps"} <= set(dataset_names(folder))
    for name in dataset_names(folder):
        assert load_dataset(name, folder).name == name


def test_a_yaml_gives_name_file_and_defaults(tmp_path: Path) -> None:
    """The name is the file's; what is left out has a default."""
    loaded = load(tmp_path, SENSOR)
    assert (loaded.name, loaded.file, loaded.zone) == ("demo", tmp_path / "demo.yaml", "UTC")
    assert [feature.column for feature in loaded.features] == ["flow", "heat"]
    assert loaded.window_length == 64
    assert loaded.cadence == timedelta(minutes=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "red"}, "colour: there is no such key.*allowed here: .*cadence"),
        ({"file": "x.yaml"}, "file: there is no such key.*allowed here: .*cadence"),
        ({"entitty": "pump"}, "entitty: there is no such key; did you mean entity"),
        ({"kind": "sensors"}, "kind: .*'sensor' or 'transaction'.*given: 'sensors'"),
        ({"cadence": None}, "a sensor dataset needs cadence"),
        ({"cadence": "1 minute"}, "cadence: '1 minute' is not a duration; write .*5m"),
        ({"cadence": "0s"}, "cadence: '0s' is not a duration"),
        ({"cadence": "99999999999d"}, "cadence: '99999999999d' is not a duration"),
        ({"cadence": "0.0001ms"}, "cadence: '0.0001ms' is not a duration"),
        ({"zone": "Mars/Base"}, "zone 'Mars/Base' is not known; use an IANA name"),
        ({"zone": "../../etc/passwd"}, "zone .* is not known"),
        ({"features": []}, "features: .*at least 1"),
        ({"features": [{"name": "Flow Rate"}]}, "features.0.name: .*pattern"),
        ({"features": [{"name": "score"}]}, "'score' is taken by the pipeline.*keep column: score"),
        ({"features": [{"name": "flow"}, {"name": "flow"}]}, "'flow' is used twice"),
        ({"features": [{"name": "flow", "min": 2, "max": 1}]}, "min 2 must be less than max 1"),
        ({"features": [{"name": "flow", "log": True}]}, "log needs min: 0 or more"),
        ({"features": [{"name": "flow", "type": "categorical", "max": 1}]}, "categorical feature has no min"),
        ({"features": [{"name": "flow", "columm": "x"}]}, "features.0.columm: .*did you mean column"),
        ({"sequence_features": [{"name": "n", "kind": "time_since_last"}]}, "are for kind: transaction"),
        ({"source": {}}, "source: give either path"),
        ({"source": {"path": "x.csv", "sql": "SELECT 1", "connection_env": "X"}}, "either path.*or sql.*not both"),
        ({"source": {"sql": "SELECT 1"}}, "sql needs connection_env"),
        ({"source": {"path": "x.dat"}}, "cannot tell the format of 'x.dat'; add format"),
        ({"schedule": "daily"}, "schedule 'daily' is not a cron expression of at most once a day"),
        ({"schedule": "0 * * * *"}, "schedule '0 [*] [*] [*] [*]' is not a cron expression of at most once a day"),
        ({"schedule": "61 2 * * *"}, "schedule '61 2 [*] [*] [*]' is not a cron expression of at most once a day"),
        ({"deadline": "06:00"}, "deadline is the hour .* give schedule: too"),
        ({"schedule": "0 2 * * *", "deadline": "six"}, "deadline: 'six' is not a time of day; write hours and minutes"),
        ({"schedule": "0 2 * * *", "deadline": "24:00"}, "deadline: '24:00' is not a time of day"),
        ({"notify": {"most": 0}}, "notify.most: .*greater than or equal to 1"),
        ({"notify": {"cooldown": "6h"}}, "notify.cooldown: .*integer.*given: '6h'"),
        ({"notify": {"rout": []}}, "notify.rout: there is no such key; did you mean routes"),
        ({"notify": {"routes": [{"severity": 3}]}}, "notify.routes.0.urls_env: this key is missing"),
        ({"notify": {"routes": [{"urls_env": []}]}}, "notify.routes.0.urls_env: .*at least 1 item"),
        (
            {"notify": {"routes": [{"urls_env": ["A"], "sevrity": 3}]}},
            "notify.routes.0.sevrity: .*did you mean severity",
        ),
        ({"notify": {"routes": [{"urls_env": ["A"], "severity": 0.5}]}}, "notify.routes.0.severity: .*equal to 1"),
        (
            {"notify": {"routes": [{"urls_env": ["A"], "kinds": ["quiet"]}]}},
            "routes.0.kinds.0: .*'anomaly' or 'silent'",
        ),
        (
            {"notify": {"urls_env": ["A"], "routes": [{"urls_env": ["A"]}]}},
            "notify: the variable A is named twice; .*name it in one place",
        ),
        ({"calendar": {"path": "plan.txt"}}, "calendar: cannot tell the format of 'plan.txt'; add format"),
        (
            {"training": {"schedule": "weekly"}},
            "training.schedule: schedule 'weekly' is not a cron expression",
        ),
        ({"training": {"promotion": "yes"}}, "training.promotion: Input should be 'auto', 'human' or 'never'"),
        ({"training": {"calibration": 0.6, "holdout": 0.4}}, "must leave at least a tenth"),
        ({"threshold": {"false_alarms": 0}}, "threshold.false_alarms: .*greater than 0"),
        ({"threshold": {"false_alarms": 0.1, "score": 3}}, "threshold: give one of .*not false_alarms and score"),
        ({"threshold": {"quantile": 1.5}}, "threshold.quantile: .*less than 1"),
        ({"threshold": {"score": 3, "adapt": True}}, "threshold: adapt is for false_alarms, p_value or quantile"),
        ({"window": {"steps": 0}}, "window.steps: "),
        ({"model": {"kind": "gru"}}, "model.kind: .*'convlstm1d', 'conv1d' or 'lstm'.*given: 'gru'"),
        ({"model": {"scope": "each"}}, "model.scope: write all, entity, or groups of entities.*given: 'each'"),
        ({"model": {"scope": {"deep": "well-1"}}}, "model.scope: write all, entity, or groups"),
        ({"model": {"scope": {"deep": []}}}, "model.scope: write all, entity, or groups"),
        ({"model": {"scope": {}}}, "model.scope: write all, entity, or groups"),
        ({"name": "other"}, "name: is 'other' but the file is called demo.yaml"),
    ],
)
def test_a_wrong_yaml_is_told_with_file_key_and_what_is_allowed(tmp_path: Path, changes: Any, words: str) -> None:
    """One sentence: the file, the key, what was wrong, what to write."""
    with pytest.raises(ConfigError, match=rf"demo\.yaml.*{words}"):
        load(tmp_path, {**SENSOR, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cadence": "1m"}, "cadence is for kind: sensor"),
        ({"sequence_features": [{"name": "n", "kind": "rolling_sum", "over": "1d"}]}, "rolling_sum needs of"),
        ({"sequence_features": [{"name": "n", "kind": "rolling_count"}]}, "rolling_count needs over"),
        (
            {"sequence_features": [{"name": "n", "kind": "rolling_sum", "of": "shop", "over": "1d"}]},
            "of: 'shop' is no numeric feature; there are amount",
        ),
        ({"sequence_features": [{"name": "shop", "kind": "time_since_last"}]}, "'shop' is used twice"),
        ({"labels": LABELS}, "labels need event_id"),
        ({"event_id": "id", "labels": {**LABELS, "delay": None}}, "labels.delay: None is not a duration"),
        ({"event_id": "id", "labels": {k: LABELS[k] for k in LABELS if k != "delay"}}, "labels.delay: .*is missing"),
        ({"event_id": "id", "labels": {**LABELS, "delay": "36h"}}, "give delay: in whole days, such as 7d"),
        ({"event_id": "id", "labels": {**LABELS, "path": "y.txt"}}, "cannot tell the format of 'y.txt'"),
        ({"event_id": "id", "labels": {**LABELS, "lable": "y"}}, "labels.lable: .*did you mean label"),
        ({"sequence_features": [RISK]}, "'risk': label_rate needs labels"),
        ({"event_id": "id", "labels": LABELS, "sequence_features": [{**RISK, "of": "amount"}]},
         "'amount' is neither a categorical feature nor the entity's column; there are shop, card"),
        ({"event_id": "id", "labels": LABELS, "sequence_features": [{**RISK, "over": "36h"}]}, "counts whole days"),
        ({"event_id": "id", "labels": LABELS, "sequence_features": [{**RISK, "over": None}]}, "label_rate needs over"),
        ({"event_id": "id", "labels": LABELS, "sequence_features": [{**RISK, "of": None}]}, "label_rate needs of"),
    ],
)  # fmt: skip
def test_a_wrong_transaction_yaml_is_told(tmp_path: Path, changes: Any, words: str) -> None:
    """The same for what only transactions have."""
    with pytest.raises(ConfigError, match=rf"demo\.yaml.*{words}"):
        load(tmp_path, {**EVENTS, **changes})


def test_labels_reach_as_far_back_as_they_are_counted_and_only_their_delay_decides() -> None:
    """Delay and longest stretch together; the digest knows the delay, and not where the files are."""
    plain = dataset(EVENTS, event_id="id")
    declared, later, moved = (
        dataset(EVENTS, event_id="id", labels={**LABELS, **change})
        for change in ({}, {"delay": "8d"}, {"path": "z.csv"})
    )
    assert plain.label_reach == declared.label_reach == timedelta()
    features = [RISK, {**RISK, "name": "own", "of": "card", "over": "30d"}]
    assert dataset(EVENTS, event_id="id", labels=LABELS, sequence_features=features).label_reach == timedelta(days=37)
    assert len({plain.digest(), declared.digest(), later.digest()}) == 3
    assert moved.digest() == declared.digest()


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b", "", "just text", "a: \x07", "!!python/object:os.system {}"])
def test_what_is_no_mapping_is_told(tmp_path: Path, text: str) -> None:
    """A file that is no YAML, or YAML of another shape, is named; nothing in it is executed."""
    with pytest.raises(ConfigError, match=r"demo\.yaml"):
        load(tmp_path, text)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "stands for more than 100,000 values; use fewer anchors"),
        (MERGES, "stands for more than 100,000 values"),
        ("a: &a [*a]", "an anchor holds itself"),
        ("kind: sensor\nkind: transaction", "the key 'kind' is there twice.*line"),
        ("a: 2026-13-45", "a value is not of its type .month must be in 1..12"),
        ("a: !!bool maybe", "a value is not of its type"),
        ("a: !!timestamp soon", "a value is not of its type"),
        ("a: 9" + "9" * 5000, "a value is not of its type"),
        ("1: 2\nkind: sensor", "Keys should be strings|1: there is no such key"),
        ("entity: {x: " + "y" * 5000 + "}\nkind: " + "z" * 5000, r"kind: .{0,400}$"),
    ],
)
def test_yaml_that_is_too_much_or_says_a_thing_twice_is_told(tmp_path: Path, text: str, words: str) -> None:
    """Anchors that multiply end at once, no key is passed over in silence, no message is longer than one reads."""
    file = tmp_path / "demo.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?sm)demo\.yaml.*{words}"):
        load_dataset("demo", tmp_path)


def test_a_day_of_the_calendar_lies_within_sensible_years() -> None:
    """Whose next day there is."""
    with pytest.raises(ValueError, match="lies outside the years 1900 to 2200"):
        CalendarEntry(start="9999-12-31", reason="x")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """All missing keys, a line each."""
    with pytest.raises(ConfigError, match=r"(?s)entity: this key is missing.*features: this key is missing"):
        load(tmp_path, {key: SENSOR[key] for key in ("kind", "source", "event_time", "cadence")})


def test_an_unknown_dataset_is_told_with_those_that_exist(tmp_path: Path) -> None:
    """A typing error in a name shows the right names."""
    load(tmp_path, SENSOR)
    with pytest.raises(ConfigError, match=r"no dataset 'dem'.*datasets there: demo"):
        load_dataset("dem", tmp_path)
    assert dataset_names(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_features_name_never_hides_a_column_of_the_pipeline(name: str) -> None:
    """Reserved names are refused for features."""
    with pytest.raises(ValueError, match="taken by the pipeline"):
        dataset(features=[{"name": name}])


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_sequence_features_name_never_hides_a_column_of_the_pipeline(name: str) -> None:
    """Nor for sequence features."""
    with pytest.raises(ValueError, match="taken by the pipeline"):
        dataset(EVENTS, sequence_features=[{"name": name, "kind": "time_since_last"}])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h", 3600), ("30d", 2592000), ("500ms", 0.5), ("1.5s", 1.5), (" 2 h ", 7200)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    """A number and a unit."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.integers(1, 3 * 10**15))
def test_durations_survive_writing(microseconds: int) -> None:
    """Law: what `format_duration` writes, `parse_duration` reads back, to the microsecond."""
    value = timedelta(microseconds=microseconds)
    assert parse_duration(format_duration(value)) == value


def test_a_dataset_survives_dumping() -> None:
    """Law: what is dumped as JSON loads as the same dataset."""
    for base in (SENSOR, EVENTS):
        assert Dataset(**dataset(base).model_dump(mode="json")) == dataset(base)


def test_a_day_is_a_day_of_the_zone() -> None:
    """23, 24 and 25 hours, half-open, and every moment of them belongs to that day."""
    berlin = dataset(zone="Europe/Berlin")
    for day, hours in ((date(2024, 3, 31), 23), (date(2024, 5, 1), 24), (date(2024, 10, 27), 25)):
        start, end = berlin.day_bounds(day)
        assert end - start == timedelta(hours=hours)
        assert berlin.day_of(start) == day
        assert berlin.day_of(end - timedelta(microseconds=1)) == day
        assert berlin.day_of(end) == day + timedelta(days=1)


@given(st.dates(date(1990, 1, 1), date(2090, 1, 1)), st.sampled_from(["UTC", "Asia/Kolkata", "America/Sao_Paulo"]))
def test_days_follow_without_a_gap(day: date, zone: str) -> None:
    """Law: a day ends where the next begins, in any zone."""
    ds = dataset(zone=zone)
    assert ds.day_bounds(day)[1] == ds.day_bounds(day + timedelta(days=1))[0]


def test_lookback_and_merging_follow_from_the_kind() -> None:
    """Eighteen windows of a sensor, thirty days of transactions; sixteen cadences, one day; what is written wins."""
    assert dataset().lookback == timedelta(minutes=18 * 64)
    assert dataset().merge_within == timedelta(minutes=16)
    assert dataset(EVENTS).lookback == timedelta(days=30)
    assert dataset(EVENTS).merge_within == timedelta(days=1)
    written = dataset(history="2d", incidents={"merge_within": "5m"})
    assert (written.lookback, written.merge_within) == (timedelta(days=2), timedelta(minutes=5))


def test_channels_are_features_then_sequence_features() -> None:
    """In the order of the YAML."""
    assert dataset(EVENTS).channels == ["amount", "shop", "since_last"]


def test_a_threshold_is_stated_in_one_way_by_default_as_a_budget() -> None:
    """0.05 false alarms where none is given; a dataset that is written out and read again states the same."""
    assert dataset().threshold.rule == ("false_alarms", 0.05)
    assert dataset(threshold={"adapt": True}).threshold.rule == ("false_alarms", 0.05)
    for name, value in (("false_alarms", 0.2), ("p_value", 1e-5), ("quantile", 0.999), ("score", 3.0)):
        stated = dataset(threshold={name: value})
        assert stated.threshold.rule == (name, value)
        assert Dataset(**stated.model_dump(mode="json")).threshold == stated.threshold


def test_a_deadline_is_a_time_of_the_clock_with_or_without_quotes() -> None:
    """YAML reads 10:30 as 630 minutes; both survive writing."""
    for text, shown in (('"06:00"', "06:00"), ("06:00", "06:00"), ("10:30", "10:30")):
        found = dataset(schedule="0 2 * * *", deadline=yaml.safe_load(f"deadline: {text}")["deadline"])
        assert f"{found.deadline:%H:%M}" == shown
        assert Dataset(**found.model_dump(mode="json")).deadline == found.deadline


def test_the_digest_changes_with_what_decides_the_tables_only() -> None:
    """A bound decides what is clean; a description, a window or a threshold does not."""
    same = dataset()
    for changes in ({"description": "x"}, {"window": {"steps": 4}}, {"threshold": {"false_alarms": 1}}, {"shards": 2}):
        assert dataset(**changes).digest() == same.digest()
    for changes in ({"zone": "Asia/Tokyo"}, {"cadence": "2m"}, {"features": [{"name": "flow", "min": 1}]}):
        assert dataset(**changes).digest() != same.digest()


def test_formats_are_told_by_ending_or_declared() -> None:
    """A declared format wins; SQL has none."""
    endings = {"x.parquet": "parquet", "x.csv": "csv", "x.csv.gz": "csv", "x.ndjson": "ndjson", "x.jsonl": "ndjson"}
    for path, form in endings.items():
        assert dataset(source={"path": path}).source.guess_format() == form
    assert dataset(source={"path": "table", "format": "delta"}).source.guess_format() == "delta"
    assert dataset(source={"sql": "SELECT 1", "connection_env": "X"}).source.guess_format() is None


def test_home_is_an_argument_or_a_variable_or_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute, whatever is given; the lake and the tracking server may stand elsewhere."""
    for name in ("NIGHTSIFT_HOME", "NIGHTSIFT_LAKE", "MLFLOW_TRACKING_URI", "NIGHTSIFT_DATASETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert Home.at().root == tmp_path / "var"
    assert datasets_dir() == tmp_path / "datasets"
    assert Home.at().lake == str(tmp_path / "var/lake")
    assert Home.at().tracking_uri == f"sqlite:///{tmp_path}/var/mlflow.db"
    monkeypatch.setenv("NIGHTSIFT_HOME", "state")
    monkeypatch.setenv("NIGHTSIFT_LAKE", "s3://lake")
    assert Home.at().root == tmp_path / "state"
    assert Home.at("other").root == tmp_path / "other"
    assert Home.at().lake == "s3://lake"


def test_event_time_now_is_in_some_day() -> None:
    """`day_of` takes aware times of any zone."""
    moment = datetime(2024, 5, 1, 23, 30, tzinfo=UTC)
    assert dataset(zone="Asia/Tokyo").day_of(moment) == date(2024, 5, 2)


def test_who_is_told_of_what_concerns_the_dataset_as_a_whole(tmp_path: Path) -> None:
    """Those who are told everything; where there are none, those of every route."""
    routes = [{"urls_env": ["ONCALL"], "severity": 3}, {"urls_env": ["OPS"], "kinds": ["silent"]}]
    alone = load(tmp_path, {**SENSOR, "notify": {"routes": routes}}).notify
    beside = load(tmp_path, {**SENSOR, "notify": {"urls_env": ["TEAM"], "routes": routes}}).notify
    assert (alone.variables, beside.variables) == (["ONCALL", "OPS"], ["TEAM", "ONCALL", "OPS"])
    assert [route.urls_env for route in alone.operators] == [["ONCALL"], ["OPS"]]
    assert [route.urls_env for route in beside.operators] == [["TEAM"]]


@pytest.mark.parametrize("text", ["[" * 200_000, "- " * 200_000, "a: {b: [" * 100])
def test_a_yaml_that_nests_too_deep_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    """It ends no process, as the loader in C would let it."""
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"deep.yaml is not valid YAML: lists or maps nest deeper than 50, .* line 1"):
        load_dataset("deep", tmp_path)
