"""Verdicts on many incidents, from a CSV that went through a spreadsheet."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.review import (
    SHEET,
    Verdict,
    as_written,
    choose,
    harmless,
    read_reviewed,
    read_sheet,
    record,
    record_all,
    sheet,
)
from pipeline.workspace import Workspace
from tests.lake import DAY, at, fill, incident, pumps, readings, silence, workspace

VIBRATION = ("vibration", 0.62, 15.1, 3.0)
NAMES = ["pump-1", "=cmd|'/c calc'!A0", "@sum", "-1", "pump-2, left"]


def lake(folder: Path) -> Workspace:
    """Five incidents of entities with awkward names, and a silence."""
    ws = workspace(folder, pumps(zone="Europe/Berlin"))
    found = [incident(name, at("14:00"), at("15:00"), VIBRATION, severity=5.0 - n) for n, name in enumerate(NAMES)]
    fill(ws, readings(ws.dataset, ["pump-1"]), [*found, silence("pump-9", at("06:00"), at("08:00"))])
    return ws


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return lake(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One for tests that only read."""
    return lake(tmp_path_factory.mktemp("sheet"))


def cells(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def filled(ws: Workspace, *said: tuple[str, str], sep: str = ",") -> str:
    """The sheet with a verdict and note on its first lines, saved with `sep` between the cells."""
    rows = cells(sheet(read_reviewed(ws, DAY, DAY), ws))
    for row, (verdict, note) in zip(rows, said, strict=False):
        row |= {"verdict": verdict, "note": note}
    text = io.StringIO()
    writer = csv.DictWriter(text, SHEET, delimiter=sep)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def test_the_sheet_has_a_line_for_each_incident_in_the_zone_and_no_cell_that_computes(shared: Workspace) -> None:
    """What an analyst fills in is empty; what a spreadsheet would run has an apostrophe in front."""
    rows = cells(sheet(read_reviewed(shared, DAY, DAY), shared))
    assert list(rows[0]) == list(SHEET)
    assert [row["entity"] for row in rows] == ["pump-1", "'=cmd|'/c calc'!A0", "'@sum", "'-1", "pump-2, left", "pump-9"]
    assert rows[0]["start"] == "2026-03-25 15:00:00+01:00"
    assert {(row["state"], row["verdict"], row["note"]) for row in rows} == {("open", "", "")}
    assert rows[-1]["driven by"] == "sent nothing"
    assert not [cell for row in rows for cell in row.values() if cell[:1] in ("=", "+", "-", "@")]


def test_a_line_without_a_verdict_says_nothing(shared: Workspace) -> None:
    """The sheet as it was written records nothing."""
    assert read_sheet(shared, sheet(read_reviewed(shared, DAY, DAY), shared).encode()) == []


@settings(deadline=None, max_examples=60)
@example("\r")
@example(" '=1")
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_a_note_comes_back_as_it_was_written(shared: Workspace, note: str) -> None:
    """Commas, quotes, line ends, any script, a leading = or apostrophe: only the space around it goes."""
    (row, *_) = cells(sheet(read_reviewed(shared, DAY, DAY), shared))
    text = io.StringIO()
    csv.writer(text).writerows([SHEET, [*list(row.values())[:-2], "confirmed", harmless(note)]])
    (said,) = read_sheet(shared, text.getvalue().encode())
    assert (said.incident, said.verdict) == (row["id"], "confirmed")
    assert said.note == note.replace("\r\n", "\n").strip()


@given(st.text())
def test_what_is_made_harmless_is_found_again(cell: str) -> None:
    """`as_written` undoes `harmless`, whatever the cell says."""
    assert as_written(harmless(cell)) == cell
    assert harmless(cell)[:1] not in ("=", "+", "-", "@", "\t", "\r")


@pytest.mark.parametrize("number", ["481482212345", "12345678e123"])
def test_an_id_that_looks_like_a_number_stays_text(number: str) -> None:
    """A spreadsheet would save it as 4.8E+11, and nobody could tell which incident that was."""
    assert harmless(number) == f"'{number}"
    assert as_written(f"'{number}") == number


SAVED = {
    "as it was": lambda text: text.encode(),
    "with a byte order mark": lambda text: text.encode("utf-8-sig"),
    "as Unicode text": lambda text: text.encode("utf-16"),
    "in a Western code page": lambda text: text.encode("cp1252"),
    "with the line ends of old": lambda text: text.replace("\r\n", "\r").encode(),
}


@pytest.mark.parametrize("how", SAVED)
@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_a_sheet_is_read_however_it_was_saved(shared: Workspace, how: str, sep: str) -> None:
    """Mark, code page, separator and line ends are found out."""
    text = filled(shared, ("Confirmed ", "Lager getauscht – ähnlich März"), sep=sep)
    (said,) = read_sheet(shared, SAVED[how](text))
    assert (said.verdict, said.note) == ("confirmed", "Lager getauscht – ähnlich März")


def test_what_a_spreadsheet_does_to_the_other_columns_is_passed_over(shared: Workspace) -> None:
    """Columns of one's own, dates written otherwise, headings in capitals, blank lines, short lines."""
    (first, second, *_) = cells(sheet(read_reviewed(shared, DAY, DAY), shared))
    text = (
        f"Mine,ID , Start,VERDICT,Note\n7,{first['id'].upper()},25.03.26 15:00, DISMISSED ,\n,,,,\n8, {second['id']} \n"
    )
    assert read_sheet(shared, text.encode()) == [Verdict(first["id"], "dismissed")]


def test_every_bad_line_is_named_and_nothing_is_recorded(ws: Workspace) -> None:
    """Unknown incident, unknown word, a note alone, two opinions, a withdrawal of nothing: each with its line."""
    first, second, third, fourth, *_ = (row["id"] for row in cells(sheet(read_reviewed(ws, DAY, DAY), ws)))
    text = (
        "id,verdict,note\n"
        f'{first},confirmed,"two\nlines"\n'
        "ffffffffffff,confirmed,\n"
        f"{second},maybe,\n"
        f"{third},,no verdict\n"
        f"{first},dismissed,\n"
        f"{fourth},withdrawn,\n"
        f'{first},confirmed,"two\nlines"\n'
    )
    with pytest.raises(ConfigError) as error:
        read_sheet(ws, text.encode())
    told = str(error.value).splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [f"line {n}" for n in (4, 5, 6, 7, 8)]
    assert "has no incident 'ffffffffffff'" in told[0]
    assert "'maybe' is no verdict" in told[1]
    assert "line 2 says something else" in told[3]
    assert told[-1].startswith("nothing was recorded")
    assert ws.lake.version("verdicts") == -1


def test_a_quote_or_a_comma_out_of_place_loses_no_verdict(ws: Workspace) -> None:
    """A quote that does not end would swallow the lines after it, a comma in a note its end: both lines are named."""
    first, second, third, *_ = (row["id"] for row in cells(sheet(read_reviewed(ws, DAY, DAY), ws)))
    text = (
        "id,verdict,note\n"
        f'{first},confirmed,"bearing" worn\n'
        f"{second},confirmed,bearing, replaced\n"
        f"{third},dismissed,nothing,,\n"
        f"{third},maybe,\n"
        f'{second},confirmed,"bearing\n'
        f"{third},dismissed,nothing\n"
    )
    with pytest.raises(ConfigError) as error:
        read_sheet(ws, text.encode())
    told = str(error.value).splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [f"line {n}" for n in (2, 3, 5, 6)]
    assert "those within are doubled" in told[0]
    assert "4 cells where the first line has 3" in told[1]
    assert "unexpected end" in told[3]


def test_a_quote_that_does_not_end_in_the_headings_is_named(shared: Workspace) -> None:
    """It would take the whole file for one line."""
    with pytest.raises(ConfigError, match="line 1: "):
        read_sheet(shared, b'id,verdict,"note\na,confirmed,\n')


@pytest.mark.parametrize("head", ["", "id,note\n", "verdict\n", "id,verdict,verdict\n", "id,verdict,note,note\n"])
def test_a_file_without_the_columns_says_how_to_get_one(shared: Workspace, head: str) -> None:
    """And does not guess which of two columns is meant."""
    with pytest.raises(ConfigError, match=r"needs one column.*--export"):
        read_sheet(shared, f"{head}a,b,c,d\n".encode())


def test_imported_twice_it_adds_nothing(ws: Workspace) -> None:
    """All verdicts are one commit; the same file again is none."""
    said = read_sheet(ws, filled(ws, ("confirmed", 'a, "b"'), ("dismissed", "")).encode())
    record_all(ws, said, "ann")
    version = ws.lake.version("verdicts")
    record_all(ws, read_sheet(ws, filled(ws, ("confirmed", 'a, "b"'), ("dismissed", "")).encode()), "ann")
    assert ws.lake.version("verdicts") == version
    assert read_reviewed(ws, DAY, DAY)["state"].to_list()[:3] == ["confirmed", "dismissed", "open"]


def test_what_is_asked_for_is_chosen(ws: Workspace) -> None:
    """By name or glob, by severity (which a silence has not) and by state."""
    first, *_ = ids = read_reviewed(ws, DAY, DAY)["incident_id"].to_list()
    record(ws, first, "dismissed", "", "ann")
    reviewed = read_reviewed(ws, DAY, DAY)
    assert choose(reviewed)["incident_id"].to_list() == ids
    assert choose(reviewed, ["pump-*"])["entity"].to_list() == ["pump-1", "pump-2, left", "pump-9"]
    assert choose(reviewed, ["pump-9", "@sum"])["entity"].to_list() == ["@sum", "pump-9"]
    assert choose(reviewed, severity=3.0)["severity"].to_list() == [5.0, 4.0, 3.0]
    assert choose(reviewed, state="dismissed")["incident_id"].to_list() == [first]
    assert choose(reviewed, ["pump-1"], 3.0, "open").is_empty()
