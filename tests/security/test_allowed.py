"""What a YAML may read is what whoever runs the workers has allowed: no path, link, address or query leads out."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipeline import allowed
from pipeline.calendar import read_calendar
from pipeline.cli import main
from pipeline.config import Home, load_dataset
from pipeline.errors import ConfigError, NightsiftError
from pipeline.ingest import ingest
from pipeline.labels import label_files
from pipeline.lake import Lake, quote
from pipeline.sources import list_files, read_delta, read_sql, source_path
from pipeline.suites import load_suite
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, TRANSACTION, deliver, sensor_day
from tests.pipeline.test_database import dataset, fill_sqlite
from tests.servers import Postgres, postgres_server

DAY = date(2024, 5, 1)


@pytest.fixture
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that may be read; beside it there is one with a file that may not."""
    (tmp_path / "within").mkdir()
    (tmp_path / "outside").mkdir()
    sensor_day(0).write_parquet(tmp_path / "outside" / "secret.parquet")
    monkeypatch.setenv(allowed.SETTING, f"{tmp_path / 'within'}, s3://acme/landing, PAYMENTS")
    return tmp_path / "within"


def with_source(make: Callable[..., Workspace], path: str) -> Workspace:
    return make(SENSOR.replace("{home}/source/*.parquet", path))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/*.csv", "../outside/*.parquet", "../within/../outside/*.parquet", "../within-2/*.parquet",
        "../*/*.parquet",
        "{home}/../outside/*.parquet", "file:///etc/passwd.csv", "../within%2f../*.parquet", "../**/*.parquet",
        "s3://acme/*.parquet", "s3://acme/landing-2/*.parquet", "s3://acme/landing/../other/*.parquet",
        "s3://acme/landing/%2e%2E/other/*.parquet", "s3://other/landing/*.parquet", "gs://acme/landing/*.parquet",
    ],
)  # fmt: skip
def test_no_path_leads_out(make_workspace: Callable[..., Workspace], within: Path, path: str) -> None:
    """Exit code 2, with what is allowed and who can change it; nothing is read."""
    ws = with_source(make_workspace, path)
    with pytest.raises(ConfigError, match=r"may not be read: NIGHTSIFT_SOURCES allows .*/within, s3://acme/landing"):
        ingest(ws)
    assert not ws.lake.exists("landing")


def test_what_is_allowed_is_read(make_workspace: Callable[..., Workspace], within: Path) -> None:
    """The folder, what lies below it, and a store's folder by its address."""
    (within / "deep").mkdir()
    sensor_day(0).write_parquet(within / "deep" / "a.parquet")
    ws = with_source(make_workspace, "../within/**/*.parquet")
    assert [file.name for file in list_files(ws.dataset, ws.home)] == ["deep/a.parquet"]
    for path in ("s3://acme/landing/*.parquet", "s3://acme/landing/*/a..b.parquet"):
        stored = with_source(make_workspace, path)
        assert source_path(stored.dataset, stored.home) == path


def test_no_link_leads_out(make_workspace: Callable[..., Workspace], within: Path) -> None:
    """Neither of a file nor of a folder; the folder that is allowed may itself be reached by one."""
    ws = with_source(make_workspace, "../within/*.parquet")
    (within / "link.parquet").symlink_to(within.parent / "outside" / "secret.parquet")
    with pytest.raises(ConfigError, match=r"link\.parquet may not be read"):
        ingest(ws)
    (within / "link.parquet").unlink()
    (within / "link").symlink_to(within.parent / "outside")
    with pytest.raises(ConfigError, match="may not be read"):
        ingest(with_source(make_workspace, "../within/link/*.parquet"))
    (within.parent / "door").symlink_to(within)
    deliver_to(within / "a.parquet")
    assert ingest(with_source(make_workspace, "../door/*.parquet"))


def deliver_to(file: Path) -> None:
    sensor_day(0).write_parquet(file)


def test_a_delta_table_is_no_glob(make_workspace: Callable[..., Workspace], within: Path) -> None:
    """A link whose name would be a pattern for files leads nowhere else than one with another name."""
    sensor_day(0).write_delta(within.parent / "outside" / "table")
    (within / "t[1]").symlink_to(within.parent / "outside" / "table")
    ws = with_source(make_workspace, f'{within}/t[1]", format: "delta')
    with pytest.raises(ConfigError, match=r"t\[1\] may not be read"):
        read_delta(ws.dataset, ws.home, DAY, DAY)


def test_a_delta_table_labels_calendar_and_suite_are_bound_alike(
    make_workspace: Callable[..., Workspace], within: Path
) -> None:
    """Whatever a YAML names that is read."""
    out = within.parent / "outside"
    sensor_day(0).write_delta(out / "table")
    with pytest.raises(ConfigError, match="table may not be read"):
        read_delta(with_source(make_workspace, f'{out}/table", format: "delta').dataset, Home.at(), DAY, DAY)
    with pytest.raises(ConfigError, match="outside may not be read"):
        read_calendar(make_workspace(f"{SENSOR}calendar: {{path: '{out}/*.csv'}}\n"))
    labels = f"labels: {{path: '{out}/*.parquet', event_id: payment, label: bad, delay: 1d}}\n"
    with pytest.raises(ConfigError, match="outside may not be read"):
        label_files(make_workspace(TRANSACTION + labels))
    with pytest.raises(ConfigError, match="passwd may not be read"):
        load_suite(make_workspace(f"{SENSOR}suite: /etc/passwd\n").dataset)


def test_without_a_limit_all_is_read_that_the_process_can(make_workspace: Callable[..., Workspace], tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """On a machine of one's own; an empty limit allows nothing, and one that limits nothing is refused."""
    monkeypatch.delenv(allowed.SETTING, raising=False)
    ws = make_workspace()
    deliver(ws, sensor_day(0), "day")
    assert len(list_files(ws.dataset, ws.home)) == 1
    monkeypatch.setenv(allowed.SETTING, "")
    with pytest.raises(ConfigError, match="allows nothing"):
        list_files(ws.dataset, ws.home)
    monkeypatch.setenv(allowed.SETTING, "some/folder")
    with pytest.raises(ConfigError, match="'some/folder' is neither an absolute folder"):
        list_files(ws.dataset, ws.home)


def test_a_query_uses_the_connections_that_are_allowed(within: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML cannot name the variable with Airflow's own database."""
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://airflow:planted@127.0.0.1:9/airflow")
    source = {"sql": "SELECT * FROM connection", "connection_env": "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"}
    with pytest.raises(ConfigError, match="the database in AIRFLOW__DATABASE__SQL_ALCHEMY_CONN may not be read"):
        read_sql(dataset("", source=source), DAY, DAY)
    file = within / "payments.db"
    fill_sqlite(file, [("a", "2024-05-01", 1, None)])
    monkeypatch.setenv("PAYMENTS", f"sqlite:///{file}")
    source = {"sql": 'SELECT * FROM "pay ments"', "connection_env": "PAYMENTS"}
    assert read_sql(dataset("", source=source), DAY, DAY).height == 1


# --- queries


WRITES = [
    "DELETE FROM payments RETURNING *",
    "WITH gone AS (DELETE FROM payments RETURNING *) SELECT * FROM gone",
    "SELECT *, set_config('transaction_read_only', 'off', false), nextval('steps') FROM payments",
    "SELECT *, set_config('default_transaction_read_only', 'off', false), nextval('steps') FROM payments",
    "SELECT * FROM payments) AS x; DROP TABLE payments; --",
    "SELECT * FROM payments) AS x; COMMIT; DROP TABLE payments; --",
    "SELECT * FROM payments) AS x; SET TRANSACTION READ WRITE; DELETE FROM payments; COMMIT; --",
    "SELECT card, time, lo_create(4711)::float8 AS amount FROM payments",
    "COPY payments TO PROGRAM 'touch /tmp/owned'",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL whose user may do everything."""
    with postgres_server() as started:
        started.run(
            "CREATE TABLE payments AS SELECT 'c' AS card, TIMESTAMPTZ '2024-05-01 12:00Z' AS time, 1.0 AS amount",
            "CREATE SEQUENCE steps",
        )
        yield started


@pytest.mark.parametrize("sql", WRITES)
def test_a_query_in_postgresql_can_only_read(server: Postgres, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    """Whatever the user of the connection may: nothing is changed, and it is a sentence."""
    monkeypatch.setenv("DEMO_DATABASE", server.address())
    with pytest.raises(NightsiftError, match=r"source\.sql: the query failed: "):
        read_sql(dataset(sql), DAY, DAY)
    state = """SELECT card, time, amount + (SELECT last_value FROM steps) - 1
        + (SELECT count(*) FROM pg_largeobject_metadata) AS amount FROM payments"""
    assert read_sql(dataset(state), DAY, DAY)["amount"].to_list() == [1.0]


@pytest.mark.parametrize(
    "sql",
    [
        'SELECT * FROM "pay ments") AS x; DELETE FROM "pay ments"; --',
        "SELECT * FROM \"pay ments\") AS x; ATTACH '{other}' AS other; --",
        "ATTACH '{other}' AS other",
        "SELECT load_extension('{other}') AS card, '2024-05-01' AS time, 1 AS amount",
        "SELECT writefile('{other}', 'x') AS card, '2024-05-01' AS time, 1 AS amount",
    ],
)
def test_a_query_in_sqlite_can_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    """Neither its own file nor another; of several statements only the first is run."""
    file, other = tmp_path / "payments.db", tmp_path / "other.db"
    fill_sqlite(file, [("a", "2024-05-01", 1, None)])
    before = file.read_bytes()
    monkeypatch.setenv("DEMO_DATABASE", f"sqlite:///{file}")
    with suppress(NightsiftError):
        read_sql(dataset(sql.replace("{other}", str(other))), DAY, DAY)
    assert file.read_bytes() == before
    assert not other.exists()


NAMES = ['a"b', "a'b", 'x" FROM (SELECT 1) AS y; DROP TABLE "pay ments"; --', "é\u202e", "a;b", 'a""b', "{home}"]


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_quoted_in_what_we_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A column may be called anything: it is read under that name, and nothing else happens."""
    file = tmp_path / "payments.db"
    fill_sqlite(file, [("a", "2024-05-01", 7, None)])
    monkeypatch.setenv("DEMO_DATABASE", f"sqlite:///{file}")
    quoted = name.replace('"', '""')
    sql = f'SELECT card, time AS "{quoted}", amount FROM "pay ments"'
    assert read_sql(dataset(sql, event_time=name), DAY, DAY)["amount"].to_list() == [7.0]


@pytest.mark.parametrize("name", [*NAMES, "' OR day = '2026-01-01", "' OR 1 = 1 --"])
def test_names_are_quoted_in_what_a_table_is_asked(tmp_path: Path, name: str) -> None:
    """Replacing what a table holds of one source file changes nothing of another, whatever their names."""
    lake = Lake(str(tmp_path), "demo")
    for source in ("other", name):
        lake.replace_source(pl.DataFrame({"day": [DAY], "source": [source], "value": [1]}), source)
    lake.replace_source(pl.DataFrame({"day": [DAY], "source": [name], "value": [2]}), name)
    found = dict(pl.read_delta(lake.uri("landing")).select("source", "value").rows())
    assert found == {"other": 1, name: 2}
    assert quote(name)[1:-1].replace("''", "") == name.replace("'", "")


# --- YAML and names


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {owned}']",
        "description: !!python/object/new:subprocess.Popen [['touch', '{owned}']]",
        "channels: !!python/name:os.system",
        "description: !!python/module:os",
        "description: !ours x",
    ],
)
def test_a_yaml_runs_no_code(tmp_path: Path, text: str) -> None:
    """A tag is refused in one sentence, in a dataset as in a suite."""
    owned = tmp_path / "owned"
    file = tmp_path / "demo.yaml"
    file.write_text(f"{SENSOR}\n{text.replace('{owned}', str(owned))}\n" if text[0] != "!" else text)
    with pytest.raises(ConfigError, match=r"demo\.yaml is not valid YAML: .*tag"):
        load_dataset("demo", tmp_path)
    file.write_text(f"{SENSOR}suite: suite.yaml\n")
    (tmp_path / "suite.yaml").write_text(f"expectations: []\nmore: {text.split(': ', 1)[-1]}\n")
    with pytest.raises(ConfigError, match=r"suite\.yaml is not valid YAML: .*tag"):
        load_suite(load_dataset("demo", tmp_path))
    assert not owned.exists()


@pytest.mark.parametrize("name", ["../demo", "..", "/etc/demo", "a/b", "a\x00b", "", "demo\n", "%2e%2e"])
def test_no_name_of_a_dataset_leads_out(tmp_path: Path, name: str) -> None:
    """A name is a name: it is refused before a path is made of it."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "demo.yaml").write_text(SENSOR)
    with pytest.raises(ConfigError, match="there is no dataset"):
        open_workspace(name, tmp_path / "var", tmp_path / "datasets")


def test_words_of_the_command_line_stay_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A day, an incident and a detector that are paths are wrong usage, and lead nowhere."""
    (tmp_path / "demo.yaml").write_text(SENSOR)
    where = ["--home", str(tmp_path / "var"), "--datasets", str(tmp_path)]
    for words in (["report", "demo", "--day", "../../etc/passwd"], ["promote", "demo", "../../x"],
                  ["review", "demo", "../../x", "confirmed"]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*words, *where])
        assert ended.value.code in (1, 2)
        assert "Traceback" not in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"demo.yaml", "var"}
