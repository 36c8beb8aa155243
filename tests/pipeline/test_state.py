"""What steps have recorded is read for the days that are asked for, and the newest night is found wherever it is."""

from collections.abc import Callable
from datetime import date, timedelta

from pipeline.state import LATELY, State, newest_day, states, write_state
from pipeline.workspace import Workspace

DAY = date(2026, 1, 5)


def test_records_are_those_of_the_days_that_are_asked_for(make_workspace: Callable[..., Workspace]) -> None:
    """Both ends are included; without a bound, all of them."""
    ws = make_workspace()
    days = [DAY + timedelta(days=n) for n in range(4)]
    for day in days:
        for step in ("validate", "score"):
            write_state(ws, State(day, step, "", ""))
    assert states(ws, "score")["day"].to_list() == days
    assert states(ws, "score", days[1], days[2])["day"].to_list() == days[1:3]
    assert states(ws, first=days[3])["step"].to_list() == ["score", "validate"]


def test_the_newest_night_is_found_however_old_it_is(make_workspace: Callable[..., Workspace]) -> None:
    """Also where other steps have gone on without it for long; None where the step never ended."""
    ws = make_workspace()
    assert newest_day(ws, "score") is None
    write_state(ws, State(DAY, "score", "", ""))
    assert newest_day(ws, "score") == DAY
    later = DAY + 3 * LATELY
    write_state(ws, State(later, "validate", "", ""))
    assert newest_day(ws, "score") == DAY
    assert newest_day(ws, "validate") == later
    assert newest_day(ws, "incidents") is None
