"""Speed of building padded, masked tensors beside what people write today; every ratio is of one process.

`python -m benchmarks.sequences [--quick] --json FILE`. 10 million readings of 8 features by 1,000 entities of different
length, cut into windows of 64, 32 apart, from Parquet to tensor and mask. The contenders take turns; peak memory is
that of a process of its own for each. Then: ours on 100 million rows by shards of entities, on one million short
entities, and how long a model waits for its data.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks._common import Result, main, real_data

CHANNELS = 8
NAMES = [f"f{c}" for c in range(CHANNELS)]
LENGTH, STRIDE = 64, 32
START = 1_767_225_600_000_000  # 2026-01-01, in microseconds
Tensors = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def measure(quick: bool, scratch: Path) -> Result:
    """Return seconds, ratios and peak memory of the contenders, and of ours at other sizes."""
    rows, repeats = (200_000, 2) if quick else (10_000_000, 3)
    ordered = write(scratch / "sorted.parquet", rows, entities=1000)
    shuffled = scratch / "shuffled.parquet"
    pl.read_parquet(ordered).sample(fraction=1, shuffle=True, seed=0).write_parquet(shuffled)
    short = write(scratch / "short.parquet", rows, entities=rows // 10)
    many = scratch / "many"
    many.mkdir()
    for part in range(10):
        write(many / f"{part}.parquet", rows, entities=1000, prefix=str(part))
    parts = {"1,000 entities": ordered, "many short entities": short, "ten times the rows": many}
    return {
        "rows": rows,
        "beside a copy": beside_a_copy(ordered, repeats),
        "sorted": compare(ordered, repeats),
        "shuffled": compare(shuffled, repeats),
        "by parts": {name: alone(streamed, path, rows // 10) for name, path in parts.items()},
        "feeding": feeding(quick),
        "padding": padding(),
    }


def beside_a_copy(path: Path, repeats: int) -> Result:
    """Seconds from a frame in memory to tensor and mask, and of copying as many bytes into new memory."""
    frame = pl.read_parquet(path)
    tensors = ours(frame)
    taken: dict[str, list[float]] = {"ours": [], "copy": []}
    for _ in range(repeats + 2):
        taken["ours"].append(_seconds(lambda: ours(frame))[0])
        taken["copy"].append(_seconds(lambda: [tensor.copy() for tensor in tensors])[0])
    ours_, copy = (statistics.median(taken[name]) for name in ("ours", "copy"))
    return {"seconds": ours_, "copy": copy, "ratio": ours_ / copy, "bytes": sum(tensor.nbytes for tensor in tensors)}


def compare(path: Path, repeats: int) -> dict[str, Result]:
    """Seconds from Parquet to tensor and mask, by contender, with the ratio to ours; peak memory of one of each."""
    contenders: dict[str, Callable[[Path], Any]] = {
        "ours": whole,
        "ours by parts": by_parts,
        "pandas and pad_sequences": pandas_pad,
        "numpy loop": numpy_loop,
        "timeseries_dataset_from_array": keras_timeseries,
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    same(whole(path), pandas_pad(path), numpy_loop(path))
    for _ in range(repeats):  # interleaved, so that a slow moment of the machine meets all alike
        for name, contender in contenders.items():
            seconds, made = _seconds(lambda contender=contender: contender(path))
            taken[name].append(seconds * rows / made if isinstance(made, int) else seconds)
            del made
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    return {
        name: {
            "seconds": seconds[name],
            "ratio": seconds[name] / seconds["ours"],
            "peak MiB": alone(one, path)["peak MiB"],
        }
        for name, one in contenders.items()
    }


def same(mine: Tensors, *others: Tensors) -> None:
    """Raise AssertionError unless all hold the same bits."""
    for tensor, mask in others:
        np.testing.assert_array_equal(mine[0].reshape(tensor.shape), tensor)
        np.testing.assert_array_equal(mine[1].reshape(mask.shape), mask)


def alone(task: Callable[..., Any], *arguments: Any) -> Result:
    """Run a task in a new process; return its seconds, what it made if that is a number, and its peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (task, arguments))


def _measured(task: Callable[..., Any], arguments: tuple[Any, ...]) -> Result:
    seconds, made = _seconds(lambda: task(*arguments))
    found: Result = {"seconds": seconds, "peak MiB": _peak_mib()}
    return found | ({"rows": made, "rows a second": made / seconds} if isinstance(made, int) else {})


def _peak_mib() -> float:
    """The peak memory of this process; getrusage would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = task()
    return time.perf_counter() - began, made


def write(path: Path, rows: int, entities: int, prefix: str = "") -> Path:
    """Write readings, a minute apart, of entities whose lengths differ by up to three times; sorted as `clean` is."""
    random = np.random.default_rng(0)
    share = random.uniform(0.5, 1.5, entities)
    lengths = np.maximum(1, np.floor(share / share.sum() * rows)).astype(np.int64)
    entity = np.repeat(np.arange(entities), lengths)
    place = np.arange(len(entity)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    names = prefix + pl.Series("e", np.arange(entities)).cast(pl.String).str.zfill(8)
    pl.DataFrame(
        {
            "entity": names.gather(entity),
            "event_time": pl.Series(START + place * 60_000_000).cast(pl.Datetime("us", "UTC")),
            **{name: random.standard_normal(len(entity), dtype=np.float32) for name in NAMES},
        }
    ).write_parquet(path, row_group_size=1 << 18)
    return path


def dataset() -> Any:
    """The dataset of the benchmark: minute readings, as a YAML would have them."""
    from pipeline.config import Dataset

    return Dataset(
        name="bench", kind="sensor", cadence="1m", source={"path": "x.parquet"}, entity="entity",
        event_time="event_time", features=[{"name": name} for name in NAMES], window={"steps": 8, "rows": LENGTH // 8},
    )  # fmt: skip


def laid(frame: pl.DataFrame) -> tuple[Any, ...]:
    """Windows of a frame, and its values and rows of the mask on the grid."""
    from pipeline.sequences import build_steps, cut_strided, make_grid

    about = dataset()
    steps = build_steps(frame, about, {})
    grid = make_grid(steps)
    return cut_strided(grid, about.window, STRIDE), grid.lay(steps.values), grid.lay(steps.mask)


def ours(frame: pl.DataFrame) -> Tensors:
    """Tensor `(windows, 8, 8, 8)` and mask, from a frame."""
    windows, values, mask = laid(frame)
    return windows.gather(values), windows.gather(mask)


def whole(path: Path) -> Tensors:
    """Tensor and mask of all rows of a file at once."""
    return ours(pl.read_parquet(path))


def streamed(path: Path, most: int) -> int:
    """Tensors of all rows of a file or folder, some entities at a time, the next ones read meanwhile; how many rows.

    Windows are of at most six sizes and come a batch at a time, as they are scored.
    """
    from pipeline.score import CHUNK as BATCH
    from pipeline.sequences import ahead, by_size, entity_parts

    done = 0
    for part in ahead(entity_parts(pl.scan_parquet(path), most)):
        windows, values, mask = laid(part)
        for _, sized in by_size(windows):
            for batch in sized.batches(BATCH):
                batch.gather(values)
                batch.gather(mask)
        done += len(part)
    return done


def by_parts(path: Path) -> int:
    """As `streamed`, a tenth of ten million rows at a time."""
    return streamed(path, 1_000_000)


def pandas_pad(path: Path) -> Tensors:
    """The same by pandas' groupby and Keras' pad_sequences, as tutorials have it; `(windows, 64, 8)`."""
    import pandas as pd
    from keras.utils import pad_sequences

    frame = pd.read_parquet(path)
    if not frame["entity"].is_monotonic_increasing:
        frame = frame.sort_values(["entity", "event_time"])
    cut = []
    for _, rows in frame.groupby("entity", sort=False):
        values = rows[NAMES].to_numpy()
        cut += [values[start : start + LENGTH] for start in starts(len(values))]
    lengths = np.array([len(one) for one in cut])
    return pad_sequences(cut, maxlen=LENGTH, dtype="float32", padding="post"), np.arange(LENGTH) < lengths[:, None]


def numpy_loop(path: Path) -> Tensors:
    """The same by a NumPy sliding window for each entity."""
    frame = ordered(path)
    ends = np.flatnonzero(np.r_[np.diff(frame["entity"].rle_id().to_numpy().astype(np.int64)) > 0, True]) + 1
    values = frame.select(NAMES).to_numpy(order="c")
    tensors, masks = [], []
    for begin, end in zip(np.r_[0, ends[:-1]], ends, strict=True):
        index = np.array(starts(end - begin))[:, None] + np.arange(LENGTH)
        mask = index < end - begin
        tensors.append(np.where(mask[..., None], values[begin:end][np.minimum(index, end - begin - 1)], np.float32(0)))
        masks.append(mask)
    return np.concatenate(tensors), np.concatenate(masks)


def keras_timeseries(path: Path, share: float = 0.02) -> int:
    """Windows by `timeseries_dataset_from_array`, one entity after another, of a share of them; how many rows it did.

    It pads nothing and drops what is left at an end.
    """
    import keras

    frame = ordered(path)
    names = frame["entity"].unique(maintain_order=True)
    chosen = names.head(max(1, round(share * len(names))))
    done = 0
    for part in frame.filter(pl.col("entity").is_in(chosen.implode())).partition_by("entity"):
        cut = keras.utils.timeseries_dataset_from_array(
            part.select(NAMES).to_numpy(), None, LENGTH, sequence_stride=STRIDE, batch_size=1024
        )
        for batch in cut:
            batch.numpy()
        done += len(part)
    return done


def ordered(path: Path) -> pl.DataFrame:
    """The rows of a file by entity and event time."""
    frame = pl.read_parquet(path)
    return frame if frame["entity"].is_sorted() else frame.sort("entity", "event_time")


def starts(length: int) -> range:
    """Where the windows of a sequence begin."""
    return range(0, max(length - LENGTH + STRIDE - 1, 0) // STRIDE * STRIDE + 1, STRIDE)


def feeding(quick: bool) -> Result:
    """What share of a training epoch of the real model goes into making its batches."""
    from models import autoencoder
    from pipeline.config import Model

    about, model = dataset(), Model()
    config = autoencoder.AutoencoderConfig(8, about.window.rows, CHANNELS, filters=tuple(model.filters))
    random = np.random.default_rng(0)
    values = random.standard_normal((500 if quick else model.windows, 8, about.window.rows, CHANNELS), np.float32)
    observed = np.ones(values.shape, bool)
    made, make = 0.0, autoencoder._Batches.__getitem__

    def timed(batches: Any, index: int) -> Any:
        nonlocal made
        seconds, batch = _seconds(lambda: make(batches, index))
        made += seconds
        return batch

    network = autoencoder.build_autoencoder(config)
    autoencoder.fit(network, values[: model.batch], observed[: model.batch], observed[: model.batch, ..., 0], epochs=1)
    autoencoder._Batches.__getitem__ = timed  # type: ignore[method-assign]
    seconds, _ = _seconds(lambda: autoencoder.fit(network, values, observed, observed[..., 0], epochs=2))
    autoencoder._Batches.__getitem__ = make  # type: ignore[method-assign]
    return {"seconds": seconds, "making batches": made, "share": made / seconds}


def padding() -> dict[str, float]:
    """The share of padding in the windows that score a week of real card payments night by night."""
    from pipeline.config import Dataset
    from pipeline.sequences import build_steps, by_size, cut_windows, make_grid

    frame = pl.read_parquet([real_data("transactions") / f"data-2018-0{month}.parquet" for month in (5, 6)])
    frame = frame.select(
        pl.col("customer_id").cast(pl.String).alias("entity"), pl.col("timestamp").alias("event_time"),
        pl.col("tx_id").cast(pl.String).alias("event_id"), pl.col("amount").cast(pl.Float64),
    )  # fmt: skip
    about = Dataset(
        name="bench", kind="transaction", source={"path": "x.parquet"}, entity="entity", event_time="event_time",
        event_id="event_id", features=[{"name": "amount"}], window={"steps": 8, "rows": 4},
    )  # fmt: skip
    places = {"one size": 0, "buckets": 0}
    shown = 0
    for day in range(20, 27):
        end = pl.datetime(2018, 6, day + 1, time_unit="us", time_zone="UTC")
        night = frame.filter(pl.col("event_time").is_between(end - pl.duration(days=1) - about.lookback, end, "left"))
        steps = build_steps(night, about, {})
        tonight = steps.frame.select(pl.col("event_time") >= end - pl.duration(days=1)).to_series().to_numpy()
        windows = cut_windows(steps, make_grid(steps), tonight, about.window)
        shown += int((windows.end - windows.begin).sum())
        places["one size"] += len(windows) * windows.steps * windows.rows
        places["buckets"] += sum(len(part) * part.steps * part.rows for _, part in by_size(windows))
    return {name: 1 - shown / count for name, count in places.items()}


if __name__ == "__main__":
    main(__doc__, measure)
