"""Disks that are full or read-only, files that are cut off, and sources that change while they are read."""

import ctypes
import hashlib
import itertools
import resource
import shutil
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import GateRefusedError
from pipeline.ingest import ingest
from tests.conftest import deliver, sensor_day
from tests.faults.harness import SENSOR_START, Ended, command, night_command, run
from tests.faults.kills import walk
from tests.faults.stage import Stage
from tests.figures import long, recorded

COUNTED = {"faults": 0, "losses": 0}


_figures = recorded(
    "files",
    "Full and read-only disks, cut commits and data files, and sources that change while they are read: the night "
    "ends in a sentence; a loss is what differs from an undisturbed night's after the remedy that it names.",
    lambda: COUNTED,
)


def count(lost: list[str]) -> None:
    """Count one fault, and what was lost by it: nothing."""
    COUNTED["faults"] += 1
    COUNTED["losses"] += len(lost)
    assert not lost, "\n".join(lost)


def require_sentence(ended: Ended, *told: str) -> None:
    """The command failed with a sentence that says all of `told`, and with no traceback."""
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    assert "this should not happen" not in ended.said
    for part in told:
        assert part in " ".join(ended.said.split()), ended.said


# --- disks


def _mounted(*arguments: object) -> bool:
    """Mount as told; False where this user may not."""
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(place: Path) -> Iterator[Callable[[int], dict[int, int]]]:
    """A disk of its own at `place`, given a function that leaves so many bytes free there.

    Where none can be mounted, the function gives the limits of a process whose files cannot grow larger than that.
    """
    mounted = _mounted("-t", "tmpfs", "-o", "size=256m", "nightsift-test", place)

    def leave(room: int) -> dict[int, int]:
        if not mounted:
            return {resource.RLIMIT_FSIZE: room // 8}
        used = shutil.disk_usage(place).used
        assert _mounted("-o", f"remount,size={used + room}", place)
        return {}

    try:
        yield leave
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


PLENTY = 1 << 27


def test_a_night_whose_disk_is_full_says_so_and_the_next_has_all(stage):
    """However much room there was: none, enough for some tables, enough for all but the report or MLflow."""
    stage.begin()
    before = sum(file.stat().st_size for file in stage.place.rglob("*") if file.is_file())
    assert run(stage.work, stage.place, stage.night).code == 0
    needed = sum(file.stat().st_size for file in stage.place.rglob("*") if file.is_file()) - before
    with small_disk(stage.place) as leave:
        for share in [n / 16 for n in range(16)] if long() else (0, 0.5):
            stage.begin()
            limits = leave(int(needed * share))
            ended = run(partial(command, limits=limits), stage.place, *night_command(stage.night))
            require_sentence(ended, "error: ", f"{stage.place}/")
            lost = stage.torn()
            leave(PLENTY)
            count(lost + stage.mended())


def powerless_command(place: Path, *arguments: str) -> None:
    """The command line as a user whom permissions bind: root without its capabilities."""
    version = struct.pack("Ii", 0x20080522, 0)  # of the call, and this process
    assert ctypes.CDLL(None).capset(version, bytes(24)) == 0
    command(place, *arguments)


@contextmanager
def read_only(folder: Path) -> Iterator[Callable[..., None]]:
    """Gives a command line that cannot write below `folder`: by a mount, or where none can be made, by permissions."""
    if _mounted("--bind", folder, folder):
        try:
            assert _mounted("-o", "remount,ro,bind", folder)
            yield command
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        places = [folder, *(each for each in folder.rglob("*") if each.is_dir())]
        for each in places:
            each.chmod(0o555)
        try:
            yield powerless_command
        finally:
            for each in places:
                each.chmod(0o755)


@pytest.mark.parametrize("folder", ["lake", "."])
def test_a_night_that_may_not_write_says_where_and_the_next_has_all(stage, folder):
    """Where the lake, or the whole state folder, is read-only."""
    stage.begin()
    place = (stage.place / "var" / folder).resolve()
    with read_only(place) as bound_command:
        ended = run(bound_command, stage.place, *night_command(stage.night))
        require_sentence(ended, str(stage.place / "var"))
        lost = stage.torn()
    count(lost + stage.mended())


# --- tables


def but_for_empty_days(lost: list[str]) -> list[str]:
    """Without the records of days before the first with rows: what only a training looked at is not made anew."""
    days = [SENSOR_START - timedelta(days=n) for n in range(1, 15)]
    return [what for what in lost if not what.startswith(tuple(f"('partitions', ({day!r},))" for day in days))]


def log_of(stage: Stage, table: str) -> Path:
    """The newest commit of a table."""
    return max((Path(stage.workspace.lake.uri(table)) / "_delta_log").glob("*.json"))


@pytest.mark.parametrize("size", [0.5, 0] if long() else [0.5])
@pytest.mark.parametrize("table", ["clean", "landing", "scores", "partitions"] if long() else ["clean"])
def test_a_commit_that_was_cut_off_is_named_and_deleted(stage, table, size):
    """As a power failure leaves it: the process dies as it has written it, and not all of it was on the disk.

    Where the night can go on without, as after an ingest of which nothing is known, it does.
    """
    stage.begin()
    points = stage.walked.points
    last = points.index(next(point for point in points if point.startswith(f"before _commit {table}")))
    end = last + next(n for n, point in enumerate(points[last:], 1) if point.startswith("after write_deltalake"))
    run(walk, stage.work, stage.place, stage.night, end)
    commit = log_of(stage, table)
    commit.write_bytes(commit.read_bytes()[: int(commit.stat().st_size * size)])
    ended = run(command, stage.place, *night_command(stage.night))
    if ended.code == 0:
        assert (size, table) in ((0, "landing"), (0, "partitions")), ended.said
    else:
        require_sentence(ended, f"{commit} is gone or cut off", "delete that file", "--overwrite")
        commit.unlink()
        shutil.rmtree(stage.workspace.lake.uri("partitions"))
        assert run(command, stage.place, *night_command(stage.night, 2)).code == 0
    count(but_for_empty_days(stage.mended()))


@pytest.mark.parametrize("table", ["clean", "scores"] if long() else ["clean"])
def test_a_data_file_that_was_cut_off_is_named_and_made_anew(stage, table):
    """What the night reads of the day before; its table is moved away, and made again from the tables before it."""
    stage.begin()
    uri = Path(stage.workspace.lake.uri(table))
    file = max(uri.glob(f"day={stage.night - timedelta(days=1)}/*.parquet"), key=lambda each: each.stat().st_mtime)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    ended = run(command, stage.place, *night_command(stage.night))
    require_sentence(ended, f"{file} is gone or cut off", f"move {uri} away", "--overwrite")
    for moved in (table, "partitions"):
        shutil.rmtree(stage.workspace.lake.uri(moved))
    assert run(command, stage.place, *night_command(stage.night, 2)).code == 0
    count(but_for_empty_days(stage.mended()))


# --- sources


def test_a_source_that_is_replaced_while_it_is_read_lands_whole_or_not_at_all(make_workspace):
    """A writer replaces and appends all the time: what lands is one of the files that there were, by its digest."""
    ws, done, written = make_workspace(), threading.Event(), dict[str, int]()
    file = deliver(ws, sensor_day(0), "day-0")
    ends = [pl.concat([sensor_day(0, machines=n)] * repeats) for n, repeats in ((1, 1), (2, 400), (3, 200))]
    for frame in ends:
        other = deliver(ws, frame, f".{len(frame)}")
        written[hashlib.blake2b(other.read_bytes(), digest_size=16).hexdigest()] = len(frame)
    contents = [(file.parent / f".{len(frame)}.parquet").read_bytes() for frame in ends]

    def write() -> None:
        for turn in itertools.count():
            if done.is_set():
                return
            content = contents[turn % len(contents)]
            with file.open("wb") as stream:
                for start in range(0, len(content), 1 << 16):
                    stream.write(content[start : start + (1 << 16)])

    writer = threading.Thread(target=write)
    writer.start()
    outcomes, lost = Counter[str](), []
    try:
        for _ in range(400 if long() else 40):
            try:
                ingest(ws)
                outcomes["landed"] += 1
            except GateRefusedError as error:
                outcomes["refused" if file.name in str(error) else str(error)] += 1
            landed = ws.lake.landed()
            for digest, rows in landed.group_by("source_digest").agg(pl.col("rows").sum()).iter_rows():
                if written.get(digest) != rows:
                    lost.append(f"{rows} rows of a file {digest}, of which {written.get(digest)} were delivered")
    finally:
        done.set()
        writer.join()
    file.write_bytes(contents[2])
    ingest(ws)
    rows = ws.lake.landed()["rows"].sum()
    lost += [f"{rows} rows instead of {len(ends[2])}"] if rows != len(ends[2]) else []
    assert outcomes.keys() <= {"landed", "refused"}
    assert outcomes["refused"], "no reading met a writing"
    count(lost)
