"""The object store breaks off, refuses, answers slowly or by half, and is gone: no row is lost or there twice."""

import contextlib
import itertools
import random
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Thread

import polars as pl
import pytest
import stamina
from deltalake import DeltaTable

from pipeline import lake as lakes
from pipeline.cli import main
from pipeline.errors import NightsiftError
from pipeline.lake import Lake
from pipeline.night import run_night
from pipeline.workspace import Workspace, open_workspace
from tests.conftest import deliver, sensor_day, tables
from tests.faults.conftest import DAY, HISTORY, trained
from tests.faults.services import Count, Fault, Proxy, object_store
from tests.figures import long, recorded

ROWS = {"n": pl.Int64}
FOREVER = 1e9
count = Count("the object store")
_figures = recorded("services-store", count.what, count.told)
numbers_of_lakes = itertools.count()
EVERY = "GET HEAD PUT POST DELETE"
LOG, LISTED, DATA = r"_delta_log/\d+\.json", r"list-type=2", r"\.parquet"


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A running object store with the bucket `box`, to which the environment leads; its tries are few and short."""
    with object_store(tmp_path_factory.mktemp("store")) as proxy, pytest.MonkeyPatch.context() as patch:
        settings = {"ENDPOINT_URL": proxy.url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret",
                    "REGION": "us-east-1", "ALLOW_HTTP": "true", "MAX_ATTEMPTS": "3"}  # fmt: skip
        for name, value in settings.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("POLARS_CLOUD_MAX_RETRIES", "3")
        patch.setitem(lakes.STORE, "timeout", "2s")
        patch.setitem(lakes.STORE, "retry_timeout", "2s")
        put(proxy, "box")
        yield proxy


def put(store: Proxy, name: str, content: bytes = b"") -> None:
    """Put an object, or make a bucket."""
    headers = {"Content-Type": "application/octet-stream"}
    urllib.request.urlopen(urllib.request.Request(f"{store.url}/{name}", content, headers, method="PUT"), timeout=60)


@pytest.fixture
def lake(store: Proxy) -> Lake:
    """A lake of the test's own, with three rows of `DAY` in `scores`."""
    made = Lake(f"s3://box/lake-{next(numbers_of_lakes)}", "demo")
    made.replace("scores", DAY, numbers(3))
    return made


def numbers(count: int) -> pl.DataFrame:
    return pl.DataFrame({"n": range(count)}, schema=ROWS)


def read(lake: Lake) -> list[int]:
    return lake.scan("scores", ROWS).collect()["n"].sort().to_list()


# --- one operation


@pytest.mark.parametrize("kind", ["busy", "reset", "lost", "unsaid", "cut"])
@pytest.mark.parametrize("where", [LOG, DATA, LISTED])
def test_a_table_is_replaced_and_appended_to_once_whatever_breaks_off(
    store: Proxy, lake: Lake, kind: str, where: str
) -> None:
    """Every request to a table is broken off once, those of a commit also after it was made: no row is lost or doubled.

    A commit that was made, and of which nobody was told, is found again and not made twice.
    """
    replace, append = Fault(kind, where, EVERY), Fault(kind, where, EVERY)
    if where != LISTED and kind in ("lost", "unsaid"):
        replace.methods = append.methods = "PUT"
    with store.spoiled(replace):
        lake.replace("scores", DAY, numbers(5))
    with store.spoiled(append):
        lake.append("verdicts", numbers(2).with_columns(pl.lit(DAY).alias("day")))
    count.add(replace, append, lost=read(lake) != [*range(5)])
    assert replace.struck == append.struck == 1
    assert read(lake) == [*range(5)]
    assert lake.scan("verdicts", ROWS).collect()["n"].to_list() == [0, 1]


@pytest.mark.parametrize("kind", ["busy", "reset", "cut"])
def test_reading_goes_on_where_it_was_broken_off(store: Proxy, lake: Lake, kind: str) -> None:
    """Log, list, data and a staged shard."""
    lake.stage("one/shard", numbers(4))
    faults = [Fault(kind, where, "GET") for where in (LOG, LISTED, DATA, "_staging")]
    with store.spoiled(*faults):
        assert read(lake) == [0, 1, 2]
        staged = lake.staged("one/shard")
    count.add(*faults, lost=staged is None)
    assert staged is not None
    assert staged["n"].to_list() == [0, 1, 2, 3]
    assert [fault.struck for fault in faults] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", ["busy", "slow"])
def test_a_store_that_never_answers_is_given_up_in_a_sentence(
    store: Proxy, lake: Lake, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation ends after a bounded number of tries, with the address; nothing of it is seen."""
    monkeypatch.setitem(lakes.STORE, "timeout", "0.5s")
    monkeypatch.setitem(lakes.STORE, "retry_timeout", "1s")
    few = stamina.RetryingCaller(attempts=2, timeout=None, wait_initial=0.05, wait_max=0.1)
    for tries in ("_PATIENT", "_PERSISTENT"):
        monkeypatch.setattr(lakes, tries, few)
    listing, commit = (Fault(kind, where, EVERY, FOREVER, seconds=3) for where in (LISTED, LOG))
    with store.spoiled(listing), pytest.raises(NightsiftError, match=r"s3://box/\S+/scores cannot be reached: .*Check"):
        read(lake)
    commit.methods = "PUT"
    with store.spoiled(commit):
        if kind == "busy":
            with pytest.raises(NightsiftError, match=r"could not write s3://box/\S+/scores: .*again"):
                lake.replace("scores", DAY, numbers(9))
        else:  # what comes late is found to be done
            with contextlib.suppress(NightsiftError):
                lake.replace("scores", DAY, numbers(9))
    if kind == "busy":
        with store.spoiled(Fault(kind, "_staging", EVERY, FOREVER)):
            with pytest.raises(NightsiftError, match=r"could not write s3://box/\S+/one\.parquet"):
                lake.stage("one", numbers(1))
            with pytest.raises(NightsiftError, match=r"s3://box/\S+/one\.parquet cannot be reached"):
                lake.staged("one")
    time.sleep(3 if kind == "slow" else 0)  # until what was answered too late is written, or not
    count.add(listing, commit, lost=read(lake) not in ([0, 1, 2], [*range(9)]))
    assert read(lake) in ([0, 1, 2], [*range(9)])


def test_other_threads_go_on_while_the_store_does_not_answer(
    store: Proxy, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the API server waits for its own answer alone: it comes when another thread has asked for it."""
    monkeypatch.setitem(lakes.STORE, "timeout", "60s")
    store.requests()
    found: list[bool] = []
    asking = Thread(target=lambda: found.append(lake.exists("scores")))
    with store.spoiled(Fault("held", "", EVERY, FOREVER)):
        asking.start()
        while not store.requests():
            time.sleep(0.02)
        assert not found
    asking.join()
    assert found == [True]


def test_of_writers_of_one_day_none_is_half_there(lake: Lake) -> None:
    """Six processes' threads replace the day at once: each commits, in some order, and the last one's rows stand."""
    before = lake.version("scores")
    writers = [Thread(target=lake.replace, args=("scores", DAY, numbers(count))) for count in range(1, 7)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = read(lake)
    assert found == [*range(len(found))]
    assert 1 <= len(found) <= 6
    assert lake.version("scores") == before + 6  # no commit was written over another: the store's PUT is conditional


# --- a night


@dataclass
class Base:
    """A trained detector, the tables before a night, and those after it, on disk and undisturbed."""

    ws: Workspace
    before: Path
    wanted: dict[str, pl.DataFrame]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    root = tmp_path_factory.mktemp("base")
    ws = trained(root)
    for table in ("clean", "partitions", "quarantine"):  # else each reader asks for every commit of the days before
        DeltaTable(ws.lake.uri(table)).create_checkpoint()
    shutil.copytree(ws.lake.root, root / "before")
    deliver(ws, sensor_day(HISTORY, fault=("m1", 60, 80)), "night")
    run_night(ws, DAY)
    return Base(ws, root / "before", tables(ws))


@dataclass
class Trial:
    """The same night on tables in the object store."""

    base: Base
    ws: Workspace

    def loses(self) -> bool:
        """Whether the tables differ from those of the undisturbed night on disk."""
        found = tables(self.ws)
        assert set(found) == set(self.base.wanted)
        return not all(found[name].equals(frame) for name, frame in self.base.wanted.items())


@pytest.fixture
def new_trial(store: Proxy, base: Base, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Trial]:
    """A function that puts the tables before the night into the store, under an address of their own."""

    def make(name: str) -> Trial:
        for file in sorted(path for path in base.before.rglob("*") if path.is_file()):
            put(store, f"box/{name}/{file.relative_to(base.before)}", file.read_bytes())
        monkeypatch.setenv("NIGHTSIFT_LAKE", f"s3://box/{name}")
        return Trial(base, open_workspace("demo", base.ws.home.root, base.ws.dataset.file.parent))

    return make


NIGHTS: dict[str, list[Fault]] = {
    "undisturbed": [],
    "every other log is written, and nobody hears of it": [Fault("lost", LOG, "PUT", FOREVER, share=0.5)],
    "it falters all the time": [
        Fault("busy", "", EVERY, FOREVER, share=0.1),
        Fault("reset", "", EVERY, FOREVER, share=0.03),
        Fault("cut", "", "GET", FOREVER, share=0.03),
        Fault("slow", "", EVERY, FOREVER, share=0.1, seconds=0.05),
    ],
}


@pytest.mark.parametrize("name", NIGHTS)
def test_a_night_goes_through_a_store_that_falters(new_trial: Callable[[str], Trial], store: Proxy, name: str) -> None:
    """It ends by itself, with the very tables of a night on disk."""
    trial = new_trial(name.replace(" ", "-"))
    with store.spoiled(*NIGHTS[name]):
        run_night(trial.ws, DAY)
    lost = trial.loses()
    count.add(*NIGHTS[name], lost=lost)
    assert not lost
    assert all(fault.struck for fault in NIGHTS[name])


@pytest.mark.parametrize("number", range(15 if long() else 2))
def test_a_night_that_an_outage_ends_is_run_again(
    new_trial: Callable[[str], Trial], store: Proxy, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """At its start, in the middle or at a commit the store goes: exit code 1 and a sentence; then all is as on disk."""
    trial, chosen = new_trial(f"outage-{number}"), random.Random(number)
    at = [Fault("down", LISTED, EVERY, FOREVER), Fault("down", r"scores/_delta_log/\d+\.json", "PUT", FOREVER),
          Fault("down", "", EVERY, FOREVER, after=chosen.randrange(250))]  # fmt: skip
    outage = at[min(number, 2)]
    told = ["backfill", "demo", "--from", str(DAY), "--to", str(DAY + timedelta(days=1)), "--overwrite"]
    places = ["--home", str(trial.ws.home.root), "--datasets", str(trial.ws.dataset.file.parent)]
    capfd.readouterr()
    with store.spoiled(outage), pytest.raises(SystemExit) as ended:
        main([*told, *places])
    said = capfd.readouterr().err
    assert ended.value.code == 1, said
    assert "s3://box/outage-" in said.splitlines()[-1], said
    assert "should not happen" not in said
    run_night(trial.ws, DAY)
    lost = trial.loses()
    count.add(outage, lost=lost)
    assert not lost
