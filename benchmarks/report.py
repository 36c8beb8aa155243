"""How fast a busy night's report is made, and how large it is: `python -m benchmarks.report [--quick] --json FILE`.

500 pumps (50 with --quick) with six features and a reading a minute, each with an incident of four hours on the day,
driven by three features. The lake is fabricated, and making it is not measured. Reported: incidents, steps, pictures,
seconds of reading the tables and of making the page, both together as `write_report` takes them, whether these keep to
ten, and the page's bytes.
"""

import time
from datetime import timedelta
from pathlib import Path

from benchmarks._common import Result, bound, main
from pipeline.report import read_facts, render_report, write_report
from tests.lake import DAY, SENSORS, Fault, at, fill, find_incidents, fleet, observed_night, workspace

MOST = 10.0  # seconds that a report may take


def measure(quick: bool, scratch: Path) -> Result:
    """The figures of one report; the tables are read from disk each time."""
    ws, entities = workspace(scratch, fleet()), [f"pump-{n:04}" for n in range(50 if quick else 500)]
    faults = [fault for number, entity in enumerate(entities) for fault in _faults(number, entity)]
    fill(ws, observed_night(ws.dataset, entities, faults), [])
    found = find_incidents(ws, DAY)
    began = time.monotonic()
    page = write_report(ws, DAY)
    total = time.monotonic() - began
    began = time.monotonic()
    facts = read_facts(ws, DAY)
    read = time.monotonic() - began
    began = time.monotonic()
    text = render_report(facts)
    return {
        "incidents": found.incidents,
        "steps": facts.counts.steps,
        "pictures": text.count("<figure"),
        "seconds": round(total, 2),
        "read_seconds": round(read, 2),
        "render_seconds": round(time.monotonic() - began, 2),
        "bytes": page.stat().st_size,
        **bound(total, MOST),
    }


def _faults(number: int, entity: str) -> list[Fault]:
    """What is wrong with one pump: at another time, and with other sensors, than with the next."""
    start = at("01:00") + timedelta(minutes=number * 7 % 1100)
    sensors = [list(SENSORS)[(number + nth) % len(SENSORS)] for nth in range(3)]
    return [Fault(entity, name, start, start + timedelta(hours=4), 10 + nth) for nth, name in enumerate(sensors)]


if __name__ == "__main__":
    main("How fast a busy night's report is made, and how large it is.", measure)
