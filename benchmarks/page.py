"""How long the incidents page takes to answer: `python -m benchmarks.page [--quick] [--json FILE]`.

A lake of 10,000 incidents of 200 pumps over 30 nights (of 1,000 with --quick), 300 of them with a verdict, each in a
commit of its own, is asked over all its nights as a browser would ask, but for network and login. Reported for each
question: seconds of its first answer, and the median of later ones. The very first answer waits for `import_seconds`
too. The bound of a second holds for the slowest of them all.
"""

import statistics
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
from starlette.requests import Request
from starlette.testclient import TestClient

from benchmarks._common import ROOT, Result, bound
from benchmarks._common import main as run_benchmark

FULL, QUICK = 10_000, 1_000
NIGHTS, PUMPS, VERDICTS, TIMES = 30, 200, 300, 7
MOST = 1.0  # seconds that an answer may take
LAST = date(2026, 3, 31)
FIRST = LAST - timedelta(days=NIGHTS - 1)
QUESTIONS = {
    "first page": "",
    "last page": "&page=9999",
    "by time": "&sort=time",
    "filtered": "&entity=pump-01*&least=3&kind=anomaly&state=open",
}


@dataclass(frozen=True, slots=True)
class Everybody:
    """A visitor who may do everything."""

    name: str = "anna"
    ambient: bool = False

    def may(self, dag: str, *, run: bool = False) -> bool:
        """Yes."""
        return bool(dag) or run


async def guard(_: Request) -> Everybody:
    """Lets everybody in."""
    return Everybody()


def measure(quick: bool, scratch: Path) -> Result:
    """The seconds of every question, and of one incident's page."""
    began = time.perf_counter()
    from pipeline.web import make_app

    imported = time.perf_counter() - began
    (scratch / "datasets").mkdir()
    (scratch / "datasets" / "pumps.yaml").write_text((ROOT / "datasets" / "pumps.yaml").read_text())
    incidents = QUICK if quick else FULL
    one = fabricate(scratch, incidents)
    client, nights = TestClient(make_app(guard, scratch, scratch / "datasets")), f"first={FIRST}&last={LAST}"
    pages = {name: f"/incidents?{nights}{query}" for name, query in QUESTIONS.items()}
    pages["one incident"] = f"/incidents/pumps/{LAST}/{one}?{nights}"
    seconds = {name: _ask(client, page) for name, page in pages.items()}
    return {
        "incidents": incidents, "nights": NIGHTS, "verdicts": VERDICTS, "import_seconds": imported, "seconds": seconds,
        **bound(max(max(each["first"], each["later"]) for each in seconds.values()), MOST),
    }  # fmt: skip


def fabricate(scratch: Path, incidents: int) -> str:
    """Write the tables of nights with so many incidents in all, and verdicts on some; the id of the last one."""
    from pipeline.review import record
    from pipeline.state import State, write_state
    from pipeline.tables import incidents_schema
    from pipeline.workspace import open_workspace

    ws = open_workspace("pumps", scratch, scratch / "datasets")
    rows = [row for night in range(NIGHTS) for row in _night(FIRST + timedelta(days=night), incidents // NIGHTS + 1)]
    frame = pl.DataFrame(rows, schema=incidents_schema()).head(incidents)
    for (day,), part in frame.group_by("day", maintain_order=True):
        assert isinstance(day, date)
        ws.lake.replace("incidents", day, part)
        write_state(ws, State(day, "incidents", "i", "c"))
    for place, name in enumerate(frame["incident_id"].gather_every(incidents // VERDICTS).head(VERDICTS)):
        record(ws, name, ("confirmed", "dismissed")[place % 2], "seen on the spot", "anna")
    return str(frame["incident_id"][-1])


def _night(day: date, incidents: int) -> list[Result]:
    from pipeline.incidents import incident_id

    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    found = []
    for place in range(incidents):
        entity, start = f"pump-{place % PUMPS:04}", midnight + timedelta(minutes=4 * place)
        drivers = [{"feature": name, "share": share, "observed": 9.0, "expected": 4.0}
                   for name, share in (("vibration", 0.7), ("flow", 0.2), ("current", 0.1))]  # fmt: skip
        found.append({
            "day": day, "incident_id": incident_id(entity, start, "anomaly"), "entity": entity, "start": start,
            "end": start + timedelta(minutes=30), "peak_time": start, "peak_score": 5.0 + place, "threshold": 5.0,
            "p_value": 1e-5, "severity": 1 + place / 5, "steps": 30, "drivers": drivers, "kind": "anomaly",
            "detector_version": "1-0a1b2c3d", "reason": None,
        })  # fmt: skip
    return found


def _ask(client: TestClient, page: str) -> Result:
    """Seconds of the first answer, and the median of later ones."""
    seconds = []
    for _ in range(TIMES):
        began = time.perf_counter()
        answer = client.get(page)
        seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
    return {"first": seconds[0], "later": statistics.median(seconds[1:]), "kilobytes": len(answer.content) / 1000}


if __name__ == "__main__":
    run_benchmark("How long the incidents page takes to answer.", measure)
