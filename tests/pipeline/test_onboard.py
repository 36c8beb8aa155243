"""`init` writes a YAML that works as it is; `check` tells what is amiss, and never stops at the first."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipeline.config import Dataset, Home, load_dataset
from pipeline.errors import ConfigError, GateRefusedError
from pipeline.onboard import Finding, check, propose
from pipeline.sources import list_files, read_delta, read_file
from pipeline.suites import load_suite

START = datetime(2024, 5, 1, tzinfo=UTC)
REAL = Path(__file__).parents[2].parent / "shared" / "data"


def readings(entities: int = 3, rows: int = 600, cadence: float = 60, seed: int = 0) -> pl.DataFrame:
    """Readings on a clock, with columns of every sort."""
    rng = np.random.default_rng(seed)
    n = entities * rows
    times = [START + timedelta(seconds=cadence * i) for _ in range(entities) for i in range(rows)]
    return pl.DataFrame(
        {
            "Machine": [f"m{i}" for i in range(entities) for _ in range(rows)],
            "Time": times,
            "Volume Flow RateRMS": rng.normal(50, 5, n),
            "temp": rng.normal(0, 5, n),
            "temp ": rng.normal(0, 5, n),
            "score": rng.normal(0, 5, n),
            "3rd-axis": rng.normal(0, 5, n),
            "bytes": rng.lognormal(5, 2, n),
            "mode": rng.choice(["on", "idle", "off"], n),
            "error_code": rng.choice([0, 7, 12], n),
            "always": [5.0] * n,
            "never": pl.Series([None] * n, dtype=pl.Float64),
            "nan": [float("nan")] * n,
            "is_anomaly": rng.integers(0, 2, n),
            "row": range(n),
            "serial": [f"s{i}" for i in range(n)],
            "seen": times,
        }
    )


def payments(n: int = 3000, seed: int = 0) -> pl.DataFrame:
    """Events at any time, with amounts over orders of magnitude."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.choice(20 * 86400, n, replace=False))
    return pl.DataFrame(
        {
            "payment_id": range(n),
            "card": rng.integers(0, 40, n),
            "time": [START + timedelta(seconds=int(s)) for s in seconds],
            "score": rng.normal(0, 1, n),
            "amount": rng.lognormal(3, 1.2, n).round(2),
            "shop_id": rng.integers(0, 50, n),
            "note": [f"note {i // 1.5}" for i in range(n)],
        }
    )


def proposed(folder: Path, frame: pl.DataFrame, entity: str, event_time: str, name: str = "demo") -> Dataset:
    """What `init` makes of a Parquet file that holds `frame`."""
    frame.write_parquet(folder / f"{name}.parquet")
    propose(name, str(folder / f"{name}.parquet"), entity, event_time, datasets_folder=folder / "datasets")
    return load_dataset(name, folder / "datasets")


def all_rows(dataset: Dataset, home: Path) -> pl.DataFrame:
    return pl.concat([read_file(dataset, file) for file in list_files(dataset, Home(home))])


def outside(dataset: Dataset, rows: pl.DataFrame) -> int:
    """How many cells lie beyond their feature's bounds."""
    beyond = [
        ((rows[feature.name] < feature.min) | (rows[feature.name] > feature.max)).sum()
        for feature in dataset.features
        if feature.min is not None and feature.max is not None
    ]
    return sum(beyond)


def test_readings_on_a_clock_become_a_sensor(tmp_path: Path) -> None:
    """Kind, cadence and features follow from the data, and what says nothing is left out."""
    dataset = proposed(tmp_path, readings(), "Machine", "Time")
    assert (dataset.kind, dataset.cadence, dataset.event_id) == ("sensor", timedelta(minutes=1), None)
    assert [(feature.name, feature.column, feature.type) for feature in dataset.features] == [
        ("volume_flow_rate_rms", "Volume Flow RateRMS", "numeric"),
        ("temp", "temp", "numeric"),
        ("temp_2", "temp ", "numeric"),
        ("score_2", "score", "numeric"),
        ("f_3rd_axis", "3rd-axis", "numeric"),
        ("bytes", "bytes", "numeric"),
        ("mode", "mode", "categorical"),
        ("error_code", "error_code", "categorical"),
    ]
    assert [feature.name for feature in dataset.features if feature.log] == ["bytes"]
    assert (dataset.window.steps, dataset.window.rows) == (8, 8)


def test_every_column_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    """Whoever reads the YAML can put it back."""
    dataset = proposed(tmp_path, readings(), "Machine", "Time")
    comments = [line for line in dataset.file.read_text().splitlines() if line.startswith("#   ")]
    reasons = dict(line.removeprefix("#   ").split(": ", 1) for line in comments)
    assert list(reasons) == ["always", "never", "nan", "is_anomaly", "row", "serial", "seen"]
    assert reasons["always"] == "always 5"
    assert "label" in reasons["is_anomaly"]
    assert reasons["never"] == reasons["nan"] == "no value in the sample"


def test_events_become_transactions_with_sequence_features(tmp_path: Path) -> None:
    """The unique column identifies the event, codes are categories, the amount is looked at over time."""
    dataset = proposed(tmp_path, payments(), "card", "time")
    assert (dataset.kind, dataset.cadence, dataset.event_id) == ("transaction", None, "payment_id")
    assert [(f.name, f.type) for f in dataset.features] == [
        ("score_2", "numeric"), ("amount", "numeric"), ("shop_id", "categorical"),
    ]  # fmt: skip
    assert [(f.kind, f.of, f.over) for f in dataset.sequence_features] == [
        ("time_since_last", None, None),
        ("ratio_to_history", "amount", timedelta(days=30)),
        ("rolling_count", None, timedelta(hours=1)),
        ("rolling_count", None, timedelta(days=1)),
        ("rolling_sum", "amount", timedelta(days=1)),
    ]
    assert dataset.features[1].log
    assert (dataset.window.steps, dataset.window.rows) == (8, 4)


@pytest.mark.parametrize("end", ["parquet", "csv", "csv.gz", "ndjson"])
def test_every_format_gives_the_same_proposal(tmp_path: Path, end: str) -> None:
    """Types come from the values, so a CSV is understood as its Parquet is."""
    frame = readings(rows=60).drop("seen", "nan").with_columns(flag=pl.Series([True, False, None] * 60))
    text = frame.with_columns(pl.col("Time").dt.to_string("iso:strict"))
    file = tmp_path / f"x.{end}"
    if end == "parquet":
        frame.write_parquet(file)
    elif end == "ndjson":
        text.write_ndjson(file)
    else:
        text.write_csv(file, compression="gzip" if end == "csv.gz" else "uncompressed")
    propose("demo", str(file), "Machine", "Time", datasets_folder=tmp_path / "datasets")
    dataset = load_dataset("demo", tmp_path / "datasets")
    of_parquet = proposed(tmp_path, frame, "Machine", "Time", name="other")
    assert dataset.features == of_parquet.features
    assert all_rows(dataset, tmp_path)["problems"].list.len().sum() == 0


def test_bounds_keep_later_normal_data_in(tmp_path: Path) -> None:
    """Data of the same making, and of twice the spread, lies within the bounds that a look at other rows gave."""
    dataset = proposed(tmp_path, readings(), "Machine", "Time")
    for seed in (1, 2):
        later = readings(seed=seed).with_columns(pl.col("temp", "3rd-axis") * 2)
        later.write_parquet(tmp_path / "demo.parquet")
        assert outside(dataset, all_rows(dataset, tmp_path)) == 0
    flow = dataset.features[0]
    assert flow.min == 0
    assert flow.max is not None
    assert flow.max < 1000, "what is plainly impossible still lies outside"


@pytest.mark.parametrize(
    ("gaps", "cadence"),
    [
        ([1.0] * 99, "1s"),
        ([1.0] * 80 + [2.0] * 15 + [76.0], "1s"),
        ([59.9, 60.1, 60.0] * 30, "1m"),
        ([299.0, 301.0] * 40 + [86400.0], "5m"),
        ([0.01] * 99, "10ms"),
        ([3600.0] * 30, "1h"),
        ([1.0, 10.0, 100.0, 1000.0] * 20, None),
    ],
)
def test_the_cadence_is_the_usual_gap(tmp_path: Path, gaps: list[float], cadence: str | None) -> None:
    """Gaps, doubles and jitter do not hide a clock; where most gaps differ, there is none."""
    seconds = np.cumsum([0.0, *gaps])
    times = [START + timedelta(seconds=float(second)) for second in [*seconds, seconds[-1]]]
    frame = pl.DataFrame({"m": "a", "t": times, "x": np.random.default_rng(0).normal(size=len(times))})
    dataset = proposed(tmp_path, frame, "m", "t")
    assert (dataset.model_dump(mode="json")["cadence"], dataset.kind) == (
        cadence,
        "sensor" if cadence else "transaction",
    )


def test_short_histories_get_small_windows(tmp_path: Path) -> None:
    """A window must fit several times into what there is of an entity."""
    for rows, size in ((40, 8), (100, 16), (200, 32), (600, 64)):
        dataset = proposed(tmp_path, readings(rows=rows), "Machine", "Time", name=f"demo{rows}")
        assert dataset.window_length == size


@pytest.mark.parametrize(("zone", "told"), [(None, True), ("UTC", False)])
def test_times_without_a_zone_are_told(tmp_path: Path, zone: str | None, told: bool) -> None:
    """They are taken as UTC, and the YAML says where to write another zone."""
    frame = readings(rows=60).with_columns(pl.col("Time").dt.replace_time_zone(zone))
    dataset = proposed(tmp_path, frame, "Machine", "Time")
    assert dataset.zone == "UTC"
    assert ("carry no zone" in dataset.file.read_text()) == told


def test_names_that_yaml_would_read_otherwise_are_quoted(tmp_path: Path) -> None:
    """Columns called `on`, `1.5`, `a: b` or with a comma, an accent or a line break come through."""
    rng = np.random.default_rng(0)
    odd = ["on", "1.5", "a: b", "x, y", "{z}", "Straße", "#flow", "two\nlines", "'q\"", "null", "temperature [°C]"]
    frame = (
        readings(rows=60).select("Machine", "Time").with_columns(pl.Series(name, rng.normal(size=180)) for name in odd)
    )
    frame = frame.with_columns(pl.lit("a\nb: c").alias("constant\ntext"))
    dataset = proposed(tmp_path, frame.rename({"Machine": "yes: no", "Time": "- t"}), "yes: no", "- t")
    assert [feature.column for feature in dataset.features] == odd
    assert len({feature.name for feature in dataset.features}) == len(odd)
    assert all_rows(dataset, tmp_path)["problems"].list.len().sum() == 0


def test_several_files_are_looked_at_from_the_first_to_the_last(tmp_path: Path) -> None:
    """A value that only the last file has counts, and a glob is kept as a glob, relative to the YAML."""
    for day in range(8):
        frame = readings(rows=60, seed=day).with_columns(
            pl.col("Time") + timedelta(days=day), pl.col("temp") + 10 * day
        )
        frame.write_parquet(tmp_path / f"day-{day}.parquet")
    propose("demo", str(tmp_path / "day-*.parquet"), "Machine", "Time", datasets_folder=tmp_path / "datasets")
    dataset = load_dataset("demo", tmp_path / "datasets")
    assert len(list_files(dataset, Home(tmp_path))) == 8
    assert outside(dataset, all_rows(dataset, tmp_path)) == 0


def test_a_relative_source_is_written_relative_to_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user types is seen from where the command runs; the YAML works from anywhere."""
    (tmp_path / "given" / "in").mkdir(parents=True)
    readings(rows=60).write_parquet(tmp_path / "given/in/x.parquet")
    monkeypatch.chdir(tmp_path / "given")
    propose("demo", "in/*.parquet", "Machine", "Time", datasets_folder=tmp_path / "conf/datasets")
    monkeypatch.chdir("/")
    dataset = load_dataset("demo", tmp_path / "conf/datasets")
    assert dataset.source.path == "../../given/in/*.parquet"
    assert len(list_files(dataset, Home(tmp_path))) == 1


def test_home_in_a_source_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`{home}` stays in the YAML, so that it moves with the state folder."""
    monkeypatch.setenv("NIGHTSIFT_HOME", str(tmp_path))
    readings(rows=60).write_parquet(tmp_path / "x.parquet")
    propose("demo", "{home}/x.parquet", "Machine", "Time", datasets_folder=tmp_path / "datasets")
    assert load_dataset("demo", tmp_path / "datasets").source.path == "{home}/x.parquet"


def test_a_delta_table_is_a_source(tmp_path: Path) -> None:
    """Its format is written, as no ending tells it."""
    readings(rows=60).write_delta(tmp_path / "table")
    propose("demo", str(tmp_path / "table"), "Machine", "Time", datasets_folder=tmp_path / "datasets")
    dataset = load_dataset("demo", tmp_path / "datasets")
    assert dataset.source.format == "delta"
    assert read_delta(dataset, Home(tmp_path), START.date(), START.date()).height == 180
    assert all(finding.ok for finding in check(tmp_path / "datasets", Home(tmp_path)))


@pytest.mark.parametrize(("folder", "suite"), [("datasets", "expectations"), ("conf", "conf/expectations")])
def test_the_suite_stands_beside_or_within_the_folder(tmp_path: Path, folder: str, suite: str) -> None:
    """Both files are returned, the YAML first, and the YAML names the suite."""
    readings(rows=60).write_parquet(tmp_path / "x.parquet")
    files = propose("demo", str(tmp_path / "x.parquet"), "Machine", "Time", datasets_folder=tmp_path / folder)
    assert files == [tmp_path / folder / "demo.yaml", tmp_path / suite / "demo.yaml"]
    assert len(load_suite(load_dataset("demo", tmp_path / folder)).expectations) > 2


@pytest.mark.parametrize("existing", ["datasets/demo.yaml", "expectations/demo.yaml"])
def test_nothing_is_overwritten(tmp_path: Path, existing: str) -> None:
    """Where one of the two files exists, neither is written."""
    file = tmp_path / existing
    file.parent.mkdir()
    file.write_text("mine")
    with pytest.raises(ConfigError, match=f"{existing} exists already"):
        proposed(tmp_path, readings(rows=60), "Machine", "Time")
    assert [path.read_text() for path in tmp_path.rglob("*.yaml")] == ["mine"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "My Data"}, ConfigError, "'My Data' cannot be a dataset's name"),
        ({"entity": "machine"}, ConfigError, "--entity machine: .* no such column; there are Machine, Time"),
        ({"event_time": "when"}, ConfigError, "--event-time when: .* no such column"),
        ({"event_time": "mode"}, ConfigError, "readable time in mode"),
        ({"source_glob": "nowhere/*.parquet"}, GateRefusedError, r"demo: no source file matches .*nowhere"),
        ({"source_glob": "nowhere/x.dat"}, ConfigError, r"cannot tell the format.*\.parquet"),
    ],
)
def test_wrong_arguments_are_told(tmp_path: Path, changes: dict[str, str], error: type[Exception], words: str) -> None:
    """One sentence, and nothing is written."""
    readings(rows=60).write_parquet(tmp_path / "x.parquet")
    given: dict[str, Any] = {"name": "demo", "source_glob": str(tmp_path / "x.parquet"), "entity": "Machine"}
    given |= {"event_time": "Time", "datasets_folder": tmp_path / "datasets", **changes}
    with pytest.raises(error, match=words):
        propose(**given)
    assert not (tmp_path / "datasets").exists()


def test_data_without_a_feature_is_told(tmp_path: Path) -> None:
    """With every column and why it says nothing."""
    with pytest.raises(ConfigError, match=r"no column can be a feature.*always: always 5"):
        proposed(tmp_path, readings(rows=60).select("Machine", "Time", "always"), "Machine", "Time")


REAL_SETS = {
    "skab": ("skab/data.parquet", "entity", "sensor", "1s"),
    "asd": ("asd/data.parquet", "entity", "sensor", "5m"),
    "smd": ("smd/data.parquet", "entity", "sensor", "1m"),
    "nab": ("nab/data.parquet", "entity", "sensor", "5m"),
    "cmapss": ("cmapss_fd001/data.parquet", "entity", "sensor", "1h"),
    "transactions": ("transactions/data-*.parquet", "customer_id", "transaction", None),
}


def stand_in(folder: Path, path: str, entity: str, kind: str, cadence: str | None) -> None:
    """Data of the same making, for a checkout without the real sets."""
    frame = (
        payments()
        if kind == "transaction"
        else readings(cadence={"1s": 1, "1m": 60, "5m": 300}.get(cadence or "", 3600))
    )
    file = folder / path.replace("*", "2018-04")
    file.parent.mkdir(parents=True)
    renamed = {"card": entity, "time": "timestamp", "Machine": entity, "Time": "timestamp"}
    frame.rename({old: new for old, new in renamed.items() if old in frame.columns}).write_parquet(file)


@pytest.mark.parametrize("name", REAL_SETS)
def test_real_sets_work_with_the_yaml_as_it_is_written(tmp_path: Path, name: str) -> None:
    """Of each set: the right kind, every row without a problem and within bounds, and nothing for `check` to find."""
    path, entity, kind, cadence = REAL_SETS[name]
    root = REAL if REAL.is_dir() else tmp_path
    if root == tmp_path:
        stand_in(tmp_path, path, entity, kind, cadence)
    propose(name, str(root / path), entity, "timestamp", datasets_folder=tmp_path / "datasets")
    dataset = load_dataset(name, tmp_path / "datasets")
    assert (dataset.kind, dataset.model_dump(mode="json")["cadence"]) == (kind, cadence)
    rows = all_rows(dataset, tmp_path)
    assert rows.height > 1000
    assert rows["problems"].list.len().sum() == 0
    assert outside(dataset, rows) == 0
    assert [finding.ok for finding in check(tmp_path / "datasets", Home(tmp_path))] == [True, True, True]


def findings(folder: Path) -> dict[tuple[str, str], Finding]:
    return {(finding.dataset, finding.what): finding for finding in check(folder / "datasets", Home(folder))}


def change(folder: Path, name: str, **changes: Any) -> None:
    file = folder / "datasets" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))


def test_check_tells_every_dataset_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One broken YAML, suite, source or variable is told with its sentence, and hides nothing of the others."""
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    for name in ("good", "yamlless", "suiteless", "sourceless", "columnless", "sql", "notified", "routed", "broken"):
        proposed(tmp_path, readings(rows=60), "Machine", "Time", name=name)
    (tmp_path / "datasets/yamlless.yaml").write_text("kind: [")
    (tmp_path / "expectations/suiteless.yaml").write_text("expectations:\n  - type: expect_nothing\n")
    (tmp_path / "sourceless.parquet").unlink()
    readings(rows=60).drop("temp").write_parquet(tmp_path / "columnless.parquet")
    change(tmp_path, "sql", source={"sql": "SELECT 1", "connection_env": "NO_SUCH_VARIABLE"})
    change(tmp_path, "notified", notify={"urls_env": ["NO_SUCH_VARIABLE"]})
    change(tmp_path, "routed", notify={"routes": [{"urls_env": ["NO_SUCH_VARIABLE"]}]})
    infinite = pl.when(pl.col("row") > 9).then(float("inf")).otherwise("temp")
    readings(rows=60).with_columns(temp=infinite).write_parquet(tmp_path / "broken.parquet")
    found = findings(tmp_path)
    failed = {key: finding.message for key, finding in found.items() if not finding.ok}
    assert set(failed) == {
        ("yamlless", "yaml"), ("suiteless", "suite"), ("sourceless", "source"), ("columnless", "source"),
        ("sql", "source"), ("notified", "notify"), ("routed", "notify"), ("broken", "source"),
    }  # fmt: skip
    assert "yamlless.yaml is not valid YAML" in failed["yamlless", "yaml"]
    assert "expect_nothing" in failed["suiteless", "suite"]
    assert "no source file matches" in failed["sourceless", "source"]
    assert "no column 'temp'" in failed["columnless", "source"]
    assert "NO_SUCH_VARIABLE is not set" in failed["sql", "source"]
    assert "NO_SUCH_VARIABLE is not set" in failed["notified", "notify"]
    assert "NO_SUCH_VARIABLE is not set" in failed["routed", "notify"]
    assert "170 of them with problems, such as: temp: infinite" in failed["broken", "source"]
    assert "180 rows, 0 with problems" in found["good", "source"].message


def test_check_of_nothing_is_a_finding(tmp_path: Path) -> None:
    """An empty folder is told, with what to do."""
    (finding,) = check(tmp_path / "datasets", Home(tmp_path))
    assert (finding.ok, finding.what) == (False, "yaml")
    assert "nightsift init" in finding.message


def test_check_reads_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query is tried, columns and all."""
    import sqlite3

    with sqlite3.connect(tmp_path / "x.db") as database:
        database.execute("CREATE TABLE x (Machine, Time, temp)")
    database.close()
    monkeypatch.setenv("DEMO_DATABASE", f"sqlite:///{tmp_path}/x.db")
    proposed(tmp_path, readings(rows=60).select("Machine", "Time", "temp"), "Machine", "Time")
    change(tmp_path, "demo", source={"sql": "SELECT * FROM x", "connection_env": "DEMO_DATABASE"})
    assert findings(tmp_path)["demo", "source"].ok
    change(tmp_path, "demo", source={"sql": "SELECT Machine, Time FROM x", "connection_env": "DEMO_DATABASE"})
    assert "no column 'temp'" in findings(tmp_path)["demo", "source"].message
