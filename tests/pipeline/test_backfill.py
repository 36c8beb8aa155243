"""Backfill on demand: of some entities, by any version, refused in a sentence, and never a gap told as done."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline import tracking
from pipeline.backfill import Backfill, backfill, foreign, plan, read_form, refuse, run_day, unfinished, verify
from pipeline.cli import main
from pipeline.errors import ConfigError, NightsiftError
from pipeline.incidents import read_incidents
from pipeline.ingest import ingest
from pipeline.logbook import example
from pipeline.night import missing_days, run_night
from pipeline.promotion import promote
from pipeline.score import load_detector, plan_shards, prepare, publish, score_shard, stale_days
from pipeline.tables import scores_schema
from pipeline.train import train, weights_digest
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import SENSOR, START, deliver, sensor_day, tables, workspace_in

HISTORY = 6
FIRST = START.date() + timedelta(days=HISTORY)
LAST = FIRST + timedelta(days=1)
ASKED = Backfill("demo", FIRST, LAST)
SOME = ("m1", "m3*")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    """Four machines, two nights with a fault that lasts over midnight, two versions; the first is the champion.

    The other differs in its threshold alone, and is no adapted one: its scores are not those of the champion.
    """
    root = tmp_path_factory.mktemp("backfill")
    ws = workspace_in(root, SENSOR.replace("epochs: 4", "epochs: 1"))
    for day in range(HISTORY):
        deliver(ws, sensor_day(day), f"day-{day:02}")
    deliver(ws, sensor_day(HISTORY, fault=("m1", 130, 144)), f"day-{HISTORY:02}")
    deliver(ws, sensor_day(HISTORY + 1, fault=("m1", 0, 20)), f"day-{HISTORY + 1:02}")
    train(ws, ws.dataset.day_bounds(START.date())[0], ws.dataset.day_bounds(FIRST)[0])
    detector = load_detector(tracking.champion(ws).folder)
    other = replace(detector, threshold=replace(detector.threshold, value=detector.threshold.value * 1.01))
    with tracking.run(ws, "train", "another"):
        other.save(root / "another")
        rows = example(ws.dataset, other)
        tracking.challenge(ws, tracking.register(ws, root / "another", weights_digest(other), {}, "", rows))
    return ws


@pytest.fixture
def fresh(trained, tmp_path) -> Workspace:
    """A copy of the trained workspace."""
    shutil.copytree(trained.home.root, tmp_path / "copy")
    return open_workspace("demo", tmp_path / "copy", trained.dataset.file.parent)


def label(ws: Workspace, which: str) -> str:
    return tracking.label_of(ws, which)


def split(ws: Workspace, table: str, names: tuple[str, ...] = ("m1", "m3")) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of the named entities, and those of the others."""
    frame = tables(ws, table)[table]
    mine = pl.col("entity").is_in(names)
    return frame.filter(mine), frame.filter(~mine)


def test_only_the_named_entities_are_replaced(fresh):
    """Their rows are of the asked version; every other row of scores, drifts and incidents stays as it was."""
    backfill(fresh, ASKED)
    before = {name: split(fresh, name) for name in ("scores", "drifts", "incidents")}
    champion, other = label(fresh, "champion"), label(fresh, "2")
    nights = backfill(fresh, replace(ASKED, entities=SOME, detector="2"))
    assert [(night.detector, night.skipped) for night in nights] == [(other, False)] * 2
    for name, (mine, others) in before.items():
        now = split(fresh, name)
        assert now[1].equals(others), name
        assert set(now[0]["detector_version"].drop_nulls()) <= {other}, name
        assert mine.drop("detector_version").shape == now[0].drop("detector_version").shape or name != "scores"
    assert set(before["scores"][0]["detector_version"]) == {champion}
    assert label(fresh, "champion") == champion
    through = read_incidents(fresh, FIRST, LAST).filter(entity="m1").row(0, named=True)
    assert (through["start"].day, through["end"].day) == (FIRST.day, LAST.day)


def test_entities_alone_have_the_scores_of_a_whole_night(fresh, trained, tmp_path):
    """Scored alone, an entity has the scores and incidents that it has among all; and nothing else is there."""
    run_night(fresh, FIRST)
    whole = split(fresh, "scores")[0], split(fresh, "incidents")[0]
    shutil.copytree(trained.home.root, tmp_path / "alone")
    alone = open_workspace("demo", tmp_path / "alone", trained.dataset.file.parent)
    (night,) = backfill(alone, replace(ASKED, last=FIRST, entities=SOME))
    (mine, others), floats = split(alone, "scores"), pl.selectors.float()
    assert len(others) == 0
    assert mine.drop(floats).equals(whole[0].drop(floats))
    assert (mine["score"] - whole[0]["score"]).abs().max() < 1e-4
    assert split(alone, "incidents")[0]["incident_id"].equals(whole[1]["incident_id"])
    assert (night.steps, night.incidents, night.report) == (288, len(whole[1]), "")


def test_a_day_of_which_some_entities_are_scored_counts_as_missing(fresh):
    """Until it is scored wholly; the backfill of those entities is done all the same."""
    asked = replace(ASKED, entities=SOME)
    backfill(fresh, asked)
    assert missing_days(fresh, FIRST, LAST) == dict.fromkeys((FIRST, LAST), "it is not scored")
    assert unfinished(fresh, asked, label(fresh, "champion")) == {}
    assert plan(fresh, asked).days == []
    assert plan(fresh, replace(asked, entities=("m1",))).days == [FIRST, LAST]
    assert stale_days(fresh, LAST) == [LAST]
    backfill(fresh, ASKED)
    assert missing_days(fresh, FIRST, LAST) == {}


def test_entities_by_another_version_make_the_day_missing_for_the_champion(fresh):
    """No nightly run takes them back while the input is the same, and a backfill by the champion does."""
    backfill(fresh, ASKED)
    asked = replace(ASKED, last=FIRST, entities=SOME, detector=label(fresh, "2"))
    backfill(fresh, asked)
    assert missing_days(fresh, FIRST, LAST) == {FIRST: f"m1, m3* were scored by detector {label(fresh, '2')}"}
    assert stale_days(fresh, LAST) == [LAST]
    assert plan(fresh, asked).days == []
    page = fresh.home.reports / "demo" / f"{FIRST}.html"
    assert f"m1, m3*: scored apart from the others, by detector {label(fresh, '2')}" in page.read_text()
    assert [night.skipped for night in backfill(fresh, ASKED)] == [False, True]
    assert "scored apart" not in page.read_text()
    assert missing_days(fresh, FIRST, LAST) == {}
    assert set(tables(fresh, "scores")["scores"]["detector_version"]) == {label(fresh, "champion")}
    assert plan(fresh, asked).days == [FIRST]


def test_a_whole_day_by_another_version_stays_until_its_input_changes(fresh):
    """It is done for who asked for that version, missing for the champion, and stale once a late file comes."""
    asked = replace(ASKED, last=FIRST, detector="challenger")
    (night,) = backfill(fresh, asked)
    assert night.detector == label(fresh, "2") != label(fresh, "champion")
    assert Path(night.report).is_file()
    assert plan(fresh, asked).days == []
    assert missing_days(fresh, FIRST, FIRST) == {FIRST: f"it was scored by detector {night.detector}"}
    assert stale_days(fresh, LAST) == [LAST]
    deliver(fresh, sensor_day(HISTORY, machines=5).filter(pl.col("machine") == "m4"), "late")
    assert plan(fresh, asked).days == [FIRST]
    assert stale_days(fresh, LAST) == [FIRST, LAST]


def test_late_rows_of_scored_entities_are_missing_again(fresh):
    """What was scored from other input than is there now is not done."""
    asked = replace(ASKED, last=FIRST, entities=("m*",))
    backfill(fresh, asked)
    deliver(fresh, sensor_day(HISTORY, machines=5).filter(pl.col("machine") == "m4"), "late")
    assert plan(fresh, asked).days == [FIRST]
    backfill(fresh, asked)
    assert set(tables(fresh, "scores")["scores"]["entity"]) == {f"m{n}" for n in range(5)}


@pytest.mark.parametrize("step", ["find_incidents", "_count_again"])
def test_a_death_in_the_middle_of_some_entities_is_no_gap_told_as_done(fresh, monkeypatch, step):
    """Neither the day nor the entities count as done, and running it again mends both."""
    backfill(fresh, replace(ASKED, last=FIRST))
    asked = replace(ASKED, last=FIRST, entities=SOME, detector="2")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.night.find_incidents" if step == "find_incidents" else f"pipeline.score.{step}", _die)
        with pytest.raises(KeyboardInterrupt):
            backfill(fresh, asked)
    assert missing_days(fresh, FIRST, FIRST) == {FIRST: "the scoring of m1, m3* alone has not ended"}
    assert plan(fresh, asked).days == [FIRST]
    backfill(fresh, asked)
    assert plan(fresh, asked).days == []


def _die(*_args: Any, **_kwargs: Any) -> None:
    raise KeyboardInterrupt


def test_a_night_is_scored_by_the_version_that_it_was_planned_for(fresh):
    """No night is half of one detector: whoever becomes champion in its midst scores the next one."""
    ingest(fresh)
    prepare(fresh, FIRST)
    shards = plan_shards(fresh, FIRST)
    promote(fresh, "2")
    for shard in shards:
        score_shard(fresh, shard)
    assert publish(fresh, shards).detector == label(fresh, "1")


def test_a_day_on_which_only_the_calendar_changed_is_not_scored_again(fresh, tmp_path):
    """By the command line; and by the DAG, also where another version that adapted the champion has scored it."""
    asked = replace(ASKED, last=FIRST)
    backfill(fresh, asked)
    adapted = fresh.home.root / "adapted"
    detector = load_detector(tracking.champion(fresh).folder)
    with tracking.run(fresh, "train", "adapted"):
        detector.save(adapted)
        tags, rows = {"trained": label(fresh, "champion")}, example(fresh.dataset, detector)
        version = tracking.register(fresh, adapted, "ada" * 4, tags, "", rows)
    text = f"calendar: {{entries: [{{start: {FIRST}, reason: seals}}]}}\n"
    (tmp_path / "demo.yaml").write_text(fresh.dataset.file.read_text() + text)
    ws, before = open_workspace("demo", fresh.home.root, tmp_path), fresh.lake.version("scores")
    assert plan(ws, asked).days == [FIRST]
    assert run_day(ws, asked, FIRST, version.label).detector == label(fresh, "champion")
    assert plan(ws, asked).days == []
    again = open_workspace("demo", fresh.home.root, fresh.dataset.file.parent)
    assert [night.skipped for night in backfill(again, asked)] == [False]
    assert fresh.lake.version("scores") == before


def test_days_that_fail_are_named_and_keep_no_other_from_running(fresh):
    """A refused day is told with its reason at the end, and the day after it is done."""
    file = fresh.home.root / "source" / f"day-{HISTORY:02}.parquet"
    pl.read_parquet(file).with_columns(flow=pl.lit(-999.0)).write_parquet(file)
    with pytest.raises(NightsiftError, match=f"1 of 2 days are not done: {FIRST}: "):
        backfill(fresh, ASKED)
    assert list(missing_days(fresh, FIRST, LAST)) == [FIRST]
    with pytest.raises(NightsiftError, match="its night failed"):
        verify(fresh, ASKED, label(fresh, "champion"), {LAST: "its night failed"})


def test_a_backfill_with_nothing_to_do_is_done(fresh):
    """An empty plan names no version: then the days are held to the detector as it was asked for."""
    backfill(fresh, ASKED)
    assert plan(fresh, ASKED).days == []
    assert verify(fresh, ASKED, ASKED.detector, {}) == "all 2 days are done"


def test_rows_of_another_detector_are_no_day_that_is_done(fresh):
    """Two runs of one day at the same time, by two versions: whatever the records say, what stands there counts."""
    backfill(fresh, ASKED)
    champion = label(fresh, "champion")
    assert verify(fresh, ASKED, champion, {}) == "all 2 days are done"
    rows = fresh.lake.scan("scores", scores_schema(fresh.dataset), FIRST, FIRST).collect()
    left = pl.when(pl.col("entity") == "m2").then(pl.lit("2-other")).otherwise("detector_version")
    fresh.lake.replace("scores", FIRST, rows.with_columns(detector_version=left).drop("day"))
    with pytest.raises(NightsiftError, match=f"1 of 2 days are not done: {FIRST}: scores of detector 2-other"):
        verify(fresh, ASKED, champion, {})
    assert foreign(fresh, replace(ASKED, entities=SOME), champion) == {}


NOW = datetime(2026, 1, 20, tzinfo=UTC)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no day": ({"first": LAST, "last": FIRST}, "are 0 days; a backfill takes 1 to 1000"),
    "many days": ({"first": date(2020, 1, 1)}, "a backfill takes 1 to 1000"),
    "future": ({"last": date(2026, 1, 21)}, "2026-01-21 has not ended: today is 2026-01-20 in UTC"),
    "today": ({"last": date(2026, 1, 20)}, "2026-01-20 has not ended"),
    "number": ({"detector": "9"}, r"has no detector '9' in the registry; .* 1-[0-9a-f]{8}, 2-[0-9a-f]{8}"),
    "label": ({"detector": "1-00000000"}, "has no detector '1-00000000'"),
    "entities": ({"entities": ("m1", "pump*")}, "no entity of demo with rows from .* fits 'pump\\*'"),
    "at once": ({"at_once": 3}, "at_once is 3; it can be 1, 2, 4, 8, 16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_in_a_sentence(fresh, name):
    """By the same function for the form, the DAG's first task and the command line."""
    changes, words = REFUSED[name]
    ingest(fresh)
    with pytest.raises(ConfigError, match=words):
        refuse(fresh, replace(ASKED, **changes), NOW)
    refuse(fresh, ASKED, NOW)


def test_entities_are_judged_once_their_rows_are_landed(fresh, make_workspace):
    """Before any row of the days is there the form cannot know; the plan, which lands them, does."""
    unknown = replace(ASKED, first=date(2025, 6, 1), last=date(2025, 6, 2), entities=("nobody",))
    refuse(fresh, unknown)
    with pytest.raises(ConfigError, match="fits 'nobody'"):
        plan(fresh, unknown)
    with pytest.raises(ConfigError, match="demo has no detector yet; train one"):
        refuse(make_workspace(), ASKED)


FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "typo": ({"entites": ["m1"]}, "has no 'entites'; did you mean entities"),
    "no date": ({"first": "soon"}, "days such as 2026-01-31: .*soon"),
    "one name": ({"entities": "m1"}, "entities is a list of names"),
    "nothing": ({"dataset": None}, "needs a dataset"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_says_something_else_is_refused(name):
    """A misspelt key must not become a backfill of everything."""
    changes, words = FORMS[name]
    form = {"dataset": "demo", "first": str(FIRST), "last": str(LAST)}
    assert read_form({**form, "entities": None}) == ASKED
    with pytest.raises(ConfigError, match=words):
        read_form({**form, **changes})


def test_the_command_line_does_the_same(fresh, capsys):
    """`backfill` takes entities and a version; `missing` lists what is not done and exits with 1."""

    def run(*arguments: str) -> int:
        places = ["--home", str(fresh.home.root), "--datasets", str(fresh.dataset.file.parent)]
        with pytest.raises(SystemExit) as end:
            main([*arguments, "demo", "--from", str(FIRST), "--to", str(LAST + timedelta(days=1)), *places])
        return int(end.value.code or 0)

    assert run("backfill", "--entities", "m1", "--entities", "m3*", "--detector", "2") == 0
    assert set(tables(fresh, "scores")["scores"]["entity"]) == {"m1", "m3"}
    assert run("backfill", "--detector", "9") == 2
    capsys.readouterr()
    assert run("missing", "--json") == 1
    assert set(json.loads(capsys.readouterr().out)) == {str(FIRST), str(LAST)}
    assert run("backfill") == 0
    capsys.readouterr()
    assert run("missing") == 0
    assert capsys.readouterr().out == "demo: all 2 days are done\n"
