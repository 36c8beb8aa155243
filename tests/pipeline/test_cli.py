"""The command line: what an analyst sees on a terminal, what a pipe and a machine get, and what wrong use is told."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer

from pipeline import cli, completion, doctor, night
from pipeline.cli import app, main
from pipeline.doctor import Check
from pipeline.lake import Lake
from pipeline.review import VERDICTS, WITHDRAWN, history, read_reviewed
from pipeline.state import State, write_state
from pipeline.tables import incidents_schema
from pipeline.workspace import Workspace, open_workspace
from tests.lake import DAY, at, fill, incident, readings, silence, table
from tests.terminals import COLOUR, type_at_terminal

PUMPS = """
kind: sensor
source: {path: "{home}/source/*.parquet"}
entity: pump
event_time: time
cadence: 5m
features: [{name: flow, unit: m3/h, max: 400}, {name: vibration, unit: mm/s}]
"""
VIBRATION = ("vibration", 0.62, 15.1, 3.0)
FLOW = ("flow", 0.38, 100.4, 100.0)
LONG = "a pump whose name somebody has typed with much care"
BEFORE = DAY - timedelta(days=1)
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Two nights: an incident in the first; in the latest one with a bad name, one with a long name, and a silence."""
    for name in ("NIGHTSIFT_HOME", "NIGHTSIFT_DATASETS", "NIGHTSIFT_LAKE", "NIGHTSIFT_LOG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "pumps.yaml").write_text(PUMPS)
    ws = open_workspace("pumps", tmp_path / "var", tmp_path / "datasets")
    fill(ws, readings(ws.dataset, ["pump-1"]), [
        incident("$(touch owned)", at("14:00"), at("15:00"), VIBRATION, FLOW, severity=4.0),
        incident(LONG, at("03:00"), at("04:00"), VIBRATION, severity=3.0),
        silence("pump-9", at("06:00"), at("08:00")),
    ])  # fmt: skip
    earlier = at("10:00") - timedelta(days=1)
    ws.lake.replace(
        "incidents", BEFORE, table([incident("pump-1", earlier, earlier, FLOW, day=BEFORE)], incidents_schema())
    )
    write_state(ws, State(BEFORE, "incidents", "i", "c", "7-abc", {"incidents": 1}))
    return ws


def places(ws: Workspace) -> list[str]:
    return ["--home", str(ws.home.root), "--datasets", str(ws.dataset.file.parent)]


@pytest.fixture
def run(ws: Workspace, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on `ws` in this process; its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *places(ws)])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def ids(ws: Workspace) -> list[str]:
    return read_reviewed(ws, DAY, DAY)["incident_id"].to_list()


# What is listed


def test_without_dates_the_latest_night_is_listed(ws: Workspace, run: Run) -> None:
    """With the zone once, the counts by state, and how many nights back if that is asked for."""
    _, told, _ = run("incidents", "pumps")
    assert told.splitlines()[0] == "3 incidents of pumps on 2026-03-25 (3 open), times in UTC"
    assert [line.split()[0] for line in told.splitlines()[2:]] == ids(ws)
    _, told, _ = run("incidents", "pumps", "--nights", "2")
    assert told.startswith("4 incidents of pumps from 2026-03-24 to 2026-03-25 (4 open)")
    assert told.count("UTC") == 1
    _, told, _ = run("incidents", "pumps", "--to", str(DAY))
    assert told.startswith("1 incident of pumps on 2026-03-24")
    _, told, _ = run("incidents", "pumps", "--from", str(BEFORE))
    assert told.startswith("4 incidents")


def test_a_pipe_loses_nothing(run: Run) -> None:
    """Whole names and no colour, however long the line becomes."""
    _, told, _ = run("incidents", "pumps")
    assert LONG in told
    assert "vibration (62 %) and flow (38 %)" in told
    assert "\x1b" not in told


def test_what_is_asked_for_is_listed(ws: Workspace, run: Run) -> None:
    """By entity, severity and state; the JSON has all that is known of each."""
    _, told, _ = run("incidents", "pumps", "--entity", "pump-*", "--json")
    (silent,) = json.loads(told)
    assert (silent["entity"], silent["state"], silent["note"]) == ("pump-9", "open", None)
    _, told, _ = run("incidents", "pumps", "--severity", "3.5")
    assert told.startswith("1 of 3 incidents")
    run("review", "pumps", ids(ws)[0], "dismissed")
    _, told, _ = run("incidents", "pumps", "--state", "dismissed", "--json")
    assert [row["incident_id"] for row in json.loads(told)] == ids(ws)[:1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--severity", "99"], r"none of the 3 incidents of pumps on 2026-03-25 \(3 open\).*change --state"),
        (["--from", "2026-03-01", "--to", "2026-03-03"],
         "no night of pumps from 2026-03-01 to 2026-03-02 is scored; the latest that is: 2026-03-25; run: nightsift "),
    ],
)  # fmt: skip
def test_nothing_to_list_is_a_sentence_with_the_next_step(run: Run, asked: list[str], words: str) -> None:
    """And no failure; a machine gets an empty list."""
    code, told, _ = run("incidents", "pumps", *asked)
    assert code == 0
    assert re.match(words, told)
    assert json.loads(run("incidents", "pumps", *asked, "--json")[1]) == []


def test_a_night_without_incidents_is_called_normal_only_where_it_was_scored(ws: Workspace, run: Run) -> None:
    """Of several nights it is said how many were."""
    write_state(ws, State(DAY + timedelta(days=1), "incidents", "i", "c", "7-abc", {"incidents": 0}))
    assert run("incidents", "pumps")[1] == (
        "nothing abnormal in pumps on 2026-03-26; what was looked at: nightsift report pumps --day 2026-03-26\n"
    )
    _, told, _ = run("incidents", "pumps", "--from", "2026-03-26", "--to", "2026-03-29")
    assert "from 2026-03-26 to 2026-03-28 (1 of 3 nights are scored)" in told


# A terminal


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_fits_the_terminal(ws: Workspace, columns: int) -> None:
    """No line is wider, no id is shortened; at 200 columns nothing is."""
    code, shown = type_at_terminal(["incidents", "pumps", *places(ws)], columns=columns)
    lines = COLOUR.sub("", shown).splitlines()
    assert code == 0
    assert max(map(len, lines)) <= columns
    assert [line.split()[0] for line in lines[2:]] == ids(ws)
    assert (LONG in shown) == (columns == 200)
    assert ("…" in shown) == (columns == 80)


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=["", "no", "dumb"]
)
def test_the_state_has_a_colour_where_that_is_wanted(ws: Workspace, env: dict[str, str], coloured: bool) -> None:
    """Yellow is 33; with NO_COLOR or on a dumb terminal there is none."""
    _, shown = type_at_terminal(["incidents", "pumps", *places(ws)], env=env)
    assert bool(re.search(r"\x1b\[[0-9;]*33m", shown)) == coloured
    assert "open" in shown


def test_colour_can_be_forced_into_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a pager; still nothing is shortened."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, told, _ = run("incidents", "pumps")
    assert "\x1b[1;33mopen" in told
    assert LONG in told


def test_review_walks_through_what_is_open(ws: Workspace) -> None:
    """At a terminal, key by key; each verdict is recorded with its note, and the end says what came of it."""
    prompt = "q quit"
    keys = [(prompt, "n"), ("note: ", "bearing, replaced\n"), ("bearing, replaced", "c"), (prompt, "s"), (prompt, "d")]
    code, shown = type_at_terminal(["review", "pumps", "--reviewer", "ann", *places(ws)], keys)
    assert code == 0
    assert [f"{n} of 3" in shown for n in (1, 2, 3)] == [True] * 3
    assert shown.endswith("pumps: 1 confirmed and 1 dismissed, 1 left; the next training heeds it\n")
    reviewed = read_reviewed(ws, DAY, DAY)
    assert reviewed["state"].to_list() == ["confirmed", "open", "dismissed"]
    assert reviewed.row(0, named=True)["note"] == "bearing, replaced"
    assert reviewed.row(0, named=True)["reviewer"] == "ann"


# Verdicts without a terminal


def test_review_lists_what_is_open_where_there_is_no_terminal(ws: Workspace, run: Run) -> None:
    """And how to go on; with one incident, what is known of it; with --json, the same as data."""
    first, second, _ = ids(ws)
    assert run("review", "pumps", first, "confirmed", "--note", "seal", "--reviewer", "ann")[0] == 0
    _, told, _ = run("review", "pumps")
    assert second in told
    assert first not in told
    assert "nightsift review pumps ID confirmed|dismissed" in told
    assert [row["incident_id"] for row in json.loads(run("review", "pumps", "--json")[1])] == ids(ws)[1:]
    _, told, _ = run("review", "pumps", first)
    assert "confirmed by ann: seal" in told
    assert json.loads(run("review", "pumps", first, "--json")[1])["state"] == "confirmed"


def test_a_verdict_on_what_is_gone_is_told_and_taken_back(ws: Workspace, run: Run) -> None:
    """With the command, until somebody has run it; by then it steers no training."""
    gone = ids(ws)[0]
    run("review", "pumps", gone, "confirmed")
    ws.lake.replace("incidents", DAY, table([silence("pump-9", at("06:00"), at("08:00"))], incidents_schema()))
    take_back = f"nightsift review pumps {gone} withdrawn"
    assert take_back in run("review", "pumps")[1]
    assert run(*take_back.split()[1:])[0] == 0
    assert "withdrawn" not in run("review", "pumps")[1]


def test_verdicts_go_out_and_come_back_in_a_file(ws: Workspace, run: Run, tmp_path: Path) -> None:
    """The file opens in a spreadsheet; it is not overwritten, imports once, and imports nothing if a line is bad."""
    file = tmp_path / "open.csv"
    assert json.loads(run("review", "pumps", "--export", str(file), "--json")[1])["incidents"] == 3
    assert file.read_bytes().startswith(b"\xef\xbb\xbfid,entity,")
    code, _, said = run("review", "pumps", "--export", str(file))
    assert (code, "may hold verdicts" in said) == (2, True)
    head, first, second, *rest = file.read_text("utf-8-sig").splitlines()
    file.write_text("\n".join([head, first[:-1] + "Confirmed,yes", second[:-1] + "maybe,", *rest]))
    code, _, said = run("review", "pumps", "--import", str(file))
    assert (code, "line 3: 'maybe' is no verdict" in said) == (2, True)
    assert history(ws, ids(ws)[0]).is_empty()
    file.write_text("\n".join([head, first[:-1] + "Confirmed,yes", second, *rest]))
    assert run("review", "pumps", "--import", str(file))[1] == "pumps: 1 verdicts recorded\n"
    assert json.loads(run("review", "pumps", "--import", str(file), "--json")[1]) == {"recorded": 0, "known": 1}
    assert len(history(ws, ids(ws)[0])) == 1


def test_a_sheet_can_be_piped(ws: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out without a mark at its beginning, and nothing else; in from the standard input."""
    _, sheet, _ = run("review", "pumps", "--nights", "2", "--export", "-")
    assert sheet.startswith("id,entity,")
    assert sheet.count("\n") == 5
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"id;verdict\n{ids(ws)[2]};dismissed\n".encode())))
    assert run("review", "pumps", "--import", "-")[0] == 0
    assert read_reviewed(ws, DAY, DAY)["state"].to_list() == ["open", "open", "dismissed"]


# The report


@pytest.fixture
def unlogged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night that is reported, but taken to no MLflow."""
    monkeypatch.setattr(night, "log_night", lambda *_: {})


@pytest.mark.usefixtures("unlogged")
def test_the_report_of_the_latest_night_opens_in_a_browser(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where there is one; elsewhere the file is named, which is no failure."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    code, told, _ = run("report", "pumps", "--open")
    page = re.search(r"wrote (\S+)", told)
    assert page is not None
    assert Path(page[1]).name == "2026-03-25.html"
    assert (code, f"no browser to open here; copy the file, or open file://{page[1]}" in told) == (0, True)
    assert opened == []
    monkeypatch.setenv("BROWSER", "true")
    assert json.loads(run("report", "pumps", "--open", "--json")[1]) == {
        "report": page[1], "day": "2026-03-25", "opened": True
    }  # fmt: skip
    assert opened == [f"file://{page[1]}"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding_gets_what_it_can_show(ws: Workspace, encoding: str) -> None:
    """What it has no character for stands there escaped, on both streams; nothing ends in the middle."""
    fill(ws, readings(ws.dataset, ["pump-1"]), [incident("насос – 1", at("14:00"), at("15:00"), VIBRATION)])
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "pipeline.cli", "incidents", "pumps", *places(ws)]
    told = subprocess.run(command, capture_output=True, env=env, check=False)
    assert (told.returncode, told.stderr) == (0, b"")
    assert rb"\u043d\u0430\u0441\u043e\u0441 \u2013 1" in told.stdout
    said = subprocess.run([*command, "--from", "насос"], capture_output=True, env=env, check=False)
    assert said.returncode == 2
    assert rb"'\u043d\u0430\u0441\u043e\u0441' is neither a day" in said.stderr


# Wrong use

WRONG = {
    "dataset": (["incidents", "pump"], 2, "did you mean pumps"),
    "order": (["incidents", "pumps", "--from", "2026-03-26", "--to", "2026-03-25"], 2, "must be before --to"),
    "no day": (["incidents", "pumps", "--from", "yesterday"], 2, "neither a day (2024-01-31)"),
    "before all time": (["incidents", "pumps", "--to", "0001-01-01"], 2, "outside the years 1900 to 2200"),
    "after all time": (["score", "pumps", "--from", "2026-01-01", "--to", "9999-12-31"], 2, "outside the years"),
    "day of no time": (["report", "pumps", "--day", "1899-12-31"], 2, "--day '1899-12-31' lies outside"),
    "nights without end": (["incidents", "pumps", "--nights", "9999999"], 2, "less than or equal to 1000"),
    "nights and from": (["incidents", "pumps", "--from", "2026-03-01", "--nights", "2"], 2, "leave it out"),
    "after the latest": (["incidents", "pumps", "--from", "2026-04-01"], 2, "choose an earlier one"),
    "no such state": (["incidents", "pumps", "--state", "new"], 2, "'open', 'confirmed', 'dismissed', 'all'"),
    "report to come": (["report", "pumps", "--day", "2199-01-01"], 2, "the latest night that is scored is 2026-03-25"),
    "report not scored": (
        ["report", "pumps", "--day", "2026-03-01"],
        1,
        "run: nightsift score pumps --from 2026-03-01",
    ),
    "report of no day": (["report", "pumps", "--day", "x"], 2, "such as 2024-01-31"),
    "score to come": (["score", "pumps", "--from", "2199-01-01", "--to", "2199-01-02"], 2, "choose an earlier --to"),
    "validate to come": (["validate", "pumps", "--from", "2199-01-01", "--to", "2199-01-02"], 2, "is still to come"),
    "half a stretch": (["ingest", "pumps", "--from", "2026-03-01"], 2, "give both or neither"),
    "no incident": (["review", "pumps", "x", "confirmed"], 2, "list them: nightsift incidents pumps"),
    "no file": (["review", "pumps", "--import", "/nowhere.csv"], 2, "name the CSV that --export has written"),
    "stray note": (["review", "pumps", "--note", "x"], 2, "--note belongs to a verdict"),
    "two ways": (["review", "pumps", "x", "--import", "-"], 2, "choose one"),
    "json twice": (["review", "pumps", "--export", "-", "--json"], 2, "choose one"),
    "nothing to check": (["check", "pump"], 2, "did you mean pumps"),
    "no such command": (["incident", "pumps"], 2, "Did you mean 'incidents'"),
    "no such option": (["incidents", "pumps", "--night", "3"], 2, "--nights"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_ends_in_a_sentence_that_says_what_to_do(run: Run, what: str) -> None:
    """On the standard error, with the exit code that is documented; never in a traceback."""
    arguments, code, words = WRONG[what]
    ended, told, said = run(*arguments)
    assert ended == code
    assert words in said
    assert "Traceback" not in said
    assert "this should not happen" not in said
    assert told == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "there is not enough memory"),
        (pl.exceptions.PanicException("of Polars"), "cannot be read to its"),
    ],
    ids=["memory", "a file that is cut off"],
)
def test_what_a_library_cannot_go_on_from_is_said_in_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    """Though Polars' is no `Exception`."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.night.missing_days", fails)
    ended, _, said = run("missing", "pumps", "--from", "2026-01-05", "--to", "2026-01-06")
    assert ended == 1
    assert words in " ".join(said.split())
    assert "Traceback" not in said


def test_before_the_first_night_the_command_that_makes_one_is_named(
    ws: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """And where it was looked for, as that may be the mistake."""
    with pytest.raises(SystemExit) as ended:
        main(["incidents", "pumps", "--datasets", str(ws.dataset.file.parent), "--home", str(ws.home.root / "other")])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"no night of pumps is scored yet in {ws.home.root}/other/lake" in said
    assert "nightsift score pumps --from DAY --to DAY" in said


def test_a_folder_of_yamls_that_is_not_there_is_said_to_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    """With the option that names it."""
    with pytest.raises(SystemExit) as ended:
        main(["incidents", "pumps", "--datasets", "/nowhere"])
    assert ended.value.code == 2
    assert "/nowhere is no folder: choose another --datasets" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_named(ws: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system says of it, and what to do."""

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/srv/var/lake")

    monkeypatch.setattr(Lake, "scan", refuse)
    code, _, said = run("incidents", "pumps")
    assert (code, said) == (1, "error: /srv/var/lake: Permission denied; see that it is there, and that this user may "
                               "read and write it, or choose another --home\n")  # fmt: skip


def test_a_table_that_breaks_off_while_it_is_read_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store's error, which names no file."""

    def refuse(*_: Any) -> None:
        raise OSError("object-store error: 503\n(path: s3://box/demo/scores)")

    monkeypatch.setattr(Lake, "scan", refuse)
    code, _, said = run("incidents", "pumps")
    assert code == 1
    assert said.startswith("error: a table cannot be reached: object-store error: 503: (path: s3://box/demo/scores).")
    assert said.endswith(
        "Check NIGHTSIFT_LAKE, its credentials and the network; nightsift doctor says more. If it is none of these, "
        "set NIGHTSIFT_LOG=DEBUG to see where, and report it with the command that you ran\n"
    )


def test_an_mlflow_that_does_not_answer_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that says more, and without the tries that the library repeats."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    code, _, said = run("missing", "pumps", "--from", "2026-03-25", "--to", "2026-03-26")
    assert code == 1
    assert said.startswith("error: MLflow at http://127.0.0.1:9 did not answer")
    assert said.endswith("see that it runs: nightsift doctor\n")


def test_what_data_says_cannot_play_with_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that quotes a row is shown without its control characters."""

    def fail(*_: Any) -> None:
        raise cli.NightsiftError("bad row: \x1b[2Jgone [red]x[/red]")

    monkeypatch.setattr(Lake, "scan", fail)
    assert run("incidents", "pumps")[2] == "error: bad row:  [2Jgone [red]x[/red]\n"


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_in_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option and argument has a help text, and the examples keep their lines."""
    command = COMMANDS[name]
    with pytest.raises(SystemExit):
        main([name, "--help"])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    assert [param.name for param in command.params if not getattr(param, "help", None)] == []
    assert command.rich_help_panel in (cli.SET_UP, cli.NIGHT, cli.LOOK, cli.DETECTOR, cli.OPERATE)
    for line in command.epilog.splitlines()[2:]:
        assert f"\n  {line}\n" in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_can_be_typed(name: str) -> None:
    """The command takes the arguments of its examples."""
    lines = "\n".join(COMMANDS[name].epilog.splitlines()[2:]).replace("\\\n", " ").split("\n")
    for line in lines:
        program, command, *arguments = shlex.split(line.split(" | ")[0])
        assert (program, command) == ("nightsift", name)
        COMMANDS[name].make_context(name, arguments)


def test_the_commands_stand_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, each with one line."""
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    headings = re.findall(r"^(\w[\w ]*):$", told, re.MULTILINE)
    assert headings == ["Options", "Set up", "The night", "Look and judge", "Detector", "Operate"]
    assert set(COMMANDS) == set(re.findall(r"^  ([a-z]+)  ", told.partition("Set up:")[2], re.MULTILINE))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str) -> None:
    """For a machine."""
    assert "--json" in [option for param in COMMANDS[name].params for option in param.opts]


# Completion


@pytest.fixture
def complete(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, str], str]:
    """What the shell is offered for a line."""

    def offer(shell: str, line: str) -> str:
        for name, value in {
            "NIGHTSIFT_HOME": str(ws.home.root), "NIGHTSIFT_DATASETS": str(ws.dataset.file.parent),
            "_NIGHTSIFT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1), "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            main([])
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return offer


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_what_there_is(complete: Callable[[str, str], str], ws: Workspace, shell: str) -> None:
    """Datasets, incidents with their entity, verdicts, and the days that are scored, the latest first."""
    assert "pumps" in complete(shell, "nightsift incidents p")
    offered = complete(shell, "nightsift review pumps ")
    assert all(name in offered for name in ids(ws))
    assert ("pump-9" in offered) == (shell != "bash")
    assert "confirmed" in complete(shell, f"nightsift review pumps {ids(ws)[0]} c")
    days = complete(shell, "nightsift report pumps --day ")
    assert 0 <= days.find(str(DAY)) < days.find(str(BEFORE))


def test_what_data_says_is_not_run_by_the_shell(complete: Callable[[str, str], str], ws: Workspace) -> None:
    """Zsh evaluates what it is offered: no entity and no file name may bring anything with it."""
    (ws.dataset.file.parent / "$(touch owned).yaml").write_text(PUMPS)
    assert "??touch owned?" in complete("zsh", "nightsift review pumps ")
    for line in ("nightsift review pumps ", "nightsift review "):
        assert not set("$`;|&") & set(complete("zsh", line).removeprefix("_arguments '*: :"))


@pytest.mark.parametrize(
    "line", ["nightsift review nothing ", "nightsift report broken --day ", "nightsift report --day "]
)
def test_where_nothing_can_be_found_nothing_is_offered(
    complete: Callable[[str, str], str], ws: Workspace, line: str
) -> None:
    """And no error disturbs who is typing."""
    (ws.dataset.file.parent / "broken.yaml").write_text("kind: nonsense")
    assert complete("bash", line).strip() == ""


def test_the_words_for_a_verdict_are_the_ones_that_count() -> None:
    """Completion has them by heart, to be fast."""
    assert [word for word, _ in completion.verdicts(typer.Context, "")] == [*VERDICTS, WITHDRAWN]  # type: ignore[arg-type]


def test_help_and_completion_of_names_load_nothing_heavy(ws: Workspace) -> None:
    """A key press must not wait for Polars, let alone TensorFlow."""
    code = (
        "import sys\n"
        "from pipeline import cli, completion\n"
        f"class Context: params = {{'datasets': __import__('pathlib').Path({str(ws.dataset.file.parent)!r})}}\n"
        "assert completion.datasets(Context, 'p') == [('pumps', '')]\n"
        "print(sorted({'polars', 'numpy', 'rich', 'mlflow', 'tensorflow', 'airflow', 'jinja2'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"


# Machines, and the doctor


def test_a_library_that_prints_does_not_spoil_the_json(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says goes to the standard error."""

    def noisy(*_: Any) -> dict[Any, str]:
        print("View run at http://…")
        return {}

    monkeypatch.setattr(night, "missing_days", noisy)
    code, told, said = run("missing", "pumps", "--from", "2026-03-25", "--to", "2026-03-26", "--json")
    assert (code, json.loads(told), said) == (0, {}, "View run at http://…\n")


def test_the_doctor_puts_remedies_below_and_counts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels and names in columns, a remedy on one line that can be copied, and a summary."""
    checks = [Check("home", "OK", "fine"), Check("pumps source", "WARN", "late", "nightsift ingest pumps"),
              Check("lake", "FAIL", "gone", "x" * 200)]  # fmt: skip
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: iter(checks),))
    code, told, _ = run("doctor")
    assert code == 1
    assert told.splitlines() == [
        "OK    home          fine",
        "WARN  pumps source  late",
        "      → nightsift ingest pumps",
        "FAIL  lake          gone",
        f"      → {'x' * 200}",
        "1 ok, 1 warning, 1 failed",
    ]


def test_nights_are_asked_for_in_the_zone_of_the_dataset(ws: Workspace) -> None:
    """`nights_asked` counts back from the latest night, or from the end that is given."""
    assert cli.nights_asked(ws, None, None, None) == (DAY, DAY)
    assert cli.nights_asked(ws, None, None, 7) == (DAY - timedelta(days=6), DAY)
    assert cli.nights_asked(ws, None, "2026-03-20", 2) == (datetime(2026, 3, 18, tzinfo=UTC).date(),
                                                           datetime(2026, 3, 19, tzinfo=UTC).date())  # fmt: skip
    assert cli.nights_asked(ws, "2026-03-20", None, None)[1] == DAY
