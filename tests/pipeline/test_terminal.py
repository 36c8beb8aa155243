"""Tables fit or lose nothing, progress is told to whom it concerns, and JSON stands alone."""

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pipeline.progress import counted, heard_by, tell
from pipeline.terminal import Column, LogLines, fit, plain, print_table, say, show, working, wrapped

LAYOUTS = [
    [Column("id", ["0123456789ab"]), Column("entity", ["pump-7"]), Column("what", ["vibration and current"])],
    [Column("id", ["0123456789ab"]), Column("entity", ["pump-7"], least=4), Column("what", ["vibration"], least=6)],
    [Column("id", ["0123456789ab"])],
]


@pytest.mark.parametrize(
    ("room", "sizes"),
    [(None, [12, 6, 21]), (43, [12, 6, 21]), (42, [12, 6, 9]), (31, [12, 6, 9]), (28, [12, 6, 6]), (26, [12, 4, 6]),
     (25, [12]), (3, [12])],
)  # fmt: skip
def test_the_first_layout_that_fits_is_taken(room: int | None, sizes: list[int]) -> None:
    """Columns that may be are shortened, the last one first; an id never is."""
    assert [size for _, size in fit(LAYOUTS, room)] == sizes


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Mn", "Me", "Cf", "Zl", "Zp"]), max_size=30),
    st.integers(8, 60),
)
def test_no_line_is_wider_than_its_room(text: str, room: int) -> None:
    """Whatever script the cell is in."""
    ((_, first), (_, second)) = fit([[Column("a", ["bcd"]), Column("e", [text], least=2)]], room)
    assert first == 3
    assert first + 2 + second <= max(room, 3 + 2 + 2)
    assert second <= max(cell_len(text), 1)


def test_what_goes_into_a_pipe_is_whole_and_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """The widest layout, no line end within a row, no colour, no space at the end."""
    long = "x" * 300
    print_table([[Column("id", ["1"], styles={"1": "red"}), Column("text", [long])], LAYOUTS[2]])
    assert capsys.readouterr().out == f"id  text\n1   {long}\n"


@pytest.mark.parametrize(
    ("text", "told"), [("a\x1b[31mb", "a [31mb"), ("two\nlines", "two\nlines"), ("\x9b2J\r", " 2J ")]
)
def test_no_control_character_reaches_the_terminal(text: str, told: str) -> None:
    """What comes from data may not move the cursor or change colours."""
    assert plain(text) == told


def test_long_text_stands_beside_its_label() -> None:
    """Wrapped where there is a width, in one line where there is none."""
    assert wrapped("what", "one two three four five", 6, 26) == ["what  one two three four", "      five"]
    assert wrapped("what", "one two three four five", 6, None) == ["what  one two three four five"]
    assert wrapped("what", "", 6, 80) == ["what  "]


def test_json_stands_alone_on_the_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """What libraries print while they work goes to the standard error."""
    with working(as_json=True):
        print("View run at http://…")
    show({"a": 1}, as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"a": 1}
    assert captured.err == "View run at http://…\n"


def test_work_is_told_to_whoever_listens_and_only_while_they_do() -> None:
    """How many are done before each item, and the end also where the loop is left early."""
    heard: list[tuple[str, int, int]] = []
    tell("days", 1, 2)
    with heard_by(lambda *told: heard.append(told)):
        assert list(counted("days", ["a", "b"])) == ["a", "b"]
        _leave(counted("nights", ["a", "b", "c"]))
    tell("days", 1, 2)
    days, nights = [("days", 0, 2), ("days", 1, 2), ("days", 2, 2)], [("nights", 0, 3), ("nights", 3, 3)]
    assert heard == days + nights


def _leave(items: Iterator[str]) -> None:
    for _ in items:
        break


def test_without_a_terminal_each_tenth_of_many_things_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Few things, and what is told anyway, are none."""
    with working():
        for what, total in (("source files", 200), ("days", 19), ("epochs", 40)):
            list(counted(what, range(total)))
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"source files: {n} of 200" for n in range(20, 200, 20)]
    assert captured.out == ""


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_how_far_work_is_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the standard error; what is printed meanwhile, into a pipe, is not drawn into."""
    screen, pipe = Screen(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "logged\x1b[31m", None, None)
    monkeypatch.setattr(logging.getLogger("x"), "handlers", [LogLines()])
    with working():
        for n in counted("nights", range(3)):
            print(f"night {n}")
            say(f"said {n}")
            logging.getLogger("x").handle(record)
    assert "nights" in screen.getvalue()
    assert "/3" in screen.getvalue()
    for line in ("said 2", "logged [31m"):  # above the bar, on a line of its own
        assert re.search(rf"\x1b\[2K(\x1b\[2m)?{re.escape(line)}(\x1b\[0m)?\n", screen.getvalue())
    assert pipe.getvalue() == "night 0\nnight 1\nnight 2\n"
    left = screen.getvalue().rpartition("\x1b[2K")[2]
    assert left.strip() == "\x1b[?25h"  # the line is cleared, the cursor is back
