"""Whatever is delivered or written: a result, quarantine with a reason, or an error that says what to mend.

Never an exception without words, a hang, a half-written table, or a row that is gone. The cases are the same each
time; one that fails is printed as the arguments of its test. NIGHTSIFT_CHAOS=1 runs more than 5,000 of them.
"""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import SENSOR, sensor_day
from tests.figures import long, recorded
from tests.fuzz import documents, sources, written
from tests.fuzz.files import deliveries
from tests.fuzz.harness import NAME, Place, place, run

CASES = {  # in a normal run, in the long version
    "sources": (110, 2000),
    "datasets": (70, 1200),
    "suites": (50, 900),
    "labels": (20, 350),
    "calendars": (25, 350),
    "verdicts": (25, 350),
    "scored": (3, 40),
}
TALLY: dict[str, Counter[str]] = {name: Counter() for name in CASES}


def cases(name: str) -> Callable[[Any], Any]:
    """How many cases of a kind are tried: always the same ones, without a limit of time for each."""
    return settings(
        max_examples=CASES[name][long()], derandomize=True, deadline=None, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )  # fmt: skip


def counted() -> dict[str, int]:
    """What was counted by all tests of this module together."""
    total = sum(TALLY.values(), Counter())
    divided = {f"cases of {name}": counts["cases"] for name, counts in TALLY.items()}
    ends = {name: total[name] for name in ("cases", "results", "errors", "rows", "quarantined")}
    return ends | divided | {name: total[name] for name in ("tracebacks", "hangs", "rows lost")}


_figures = recorded(
    "fuzz",
    "Files, datasets, suites and tables that people keep, broken at random: each case ends in a result, in quarantine "
    "with a reason, or in a sentence that names the file",
    counted,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written.make_template(tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("reviewed")
    return root, written.make_incidents(root)


def tried(kind: str, check: Callable[..., None], *arguments: Any) -> None:
    """Run a case, and count how it has failed where it does."""
    try:
        check(*arguments, TALLY[kind])
    except AssertionError as error:
        lost = "rows" in str(error) and "exception" not in str(error)
        TALLY[kind]["rows lost" if lost else "tracebacks"] += 1
        raise
    except BaseException as error:
        TALLY[kind]["hangs" if type(error).__name__ == "HangError" else "tracebacks"] += 1
        raise


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia"])


@cases("sources")
@given(
    delivered=deliveries(),
    zone=ZONES,
    heat=st.sampled_from(["numeric", "categorical"]),
    readable=st.sampled_from([0, 0, 0.9]),
)
def test_no_row_of_a_source_is_lost(delivered, zone, heat, readable):
    form, files = delivered
    tried("sources", sources.check_delivery, sources.yaml_text(form, zone, heat), readable, files)


def in_copy(kind: str, root: Path, check: Callable[..., None], content: Any) -> None:
    with place(root) as here:
        tried(kind, check, here, content)


@cases("datasets")
@given(content=documents.datasets())
def test_a_dataset_is_used_or_told_what_is_wrong_with_it(template, content):
    in_copy("datasets", template, written.check_dataset, content)


@cases("suites")
@given(content=documents.suites())
def test_a_suite_judges_or_is_told_what_is_wrong_with_it(template, content):
    in_copy("suites", template, written.check_suite, content)


@cases("labels")
@given(file=documents.labels())
def test_labels_land_as_a_whole_or_not_at_all(template, file):
    in_copy("labels", template, written.check_labels, file)


@cases("calendars")
@given(content=documents.calendars())
def test_a_calendar_is_used_or_told_what_is_wrong_with_it(template, content):
    in_copy("calendars", template, written.check_calendar, content)


@cases("verdicts")
@given(data=st.data())
def test_a_sheet_of_verdicts_is_recorded_as_a_whole_or_not_at_all(reviewed, data):
    root, ids = reviewed
    in_copy("verdicts", root, written.check_verdicts, data.draw(documents.verdicts(ids)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a detector that has learned from six quiet days."""
    here = Place(tmp_path_factory.mktemp("trained"))
    here.put("datasets/demo.yaml", SENSOR)
    (here.home / "source").mkdir(parents=True)
    for day in range(6):
        sensor_day(day, 2).write_parquet(here.home / "source" / f"{day}.parquet")
    end = run("train", NAME, "--from", "2026-01-05", "--to", "2026-01-11", "--home", str(here.home), "--datasets",
              str(here.root / "datasets"))  # fmt: skip
    assert end.code == 0, end
    return here.root


@cases("scored")
@given(delivered=deliveries().filter(lambda told: told[0] == "parquet"), hours=st.integers(0, 23))
def test_a_night_is_scored_or_told_why_not(trained, delivered, hours):
    """Beside a whole day of readings, a bad file keeps no night from being scored, or is named."""
    night = sensor_day(6, 2).filter(sensor_day(6, 2)["time"].dt.hour() >= hours)
    with place(trained) as here:
        night.write_parquet(here.home / "source" / "night.parquet")
        tried(
            "scored",
            sources.check_night,
            here,
            delivered[1],
            str((sensor_day(6, 1)["time"][0]).date()),
            timedelta(days=1),
        )
