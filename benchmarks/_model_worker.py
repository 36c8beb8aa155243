"""One process of `benchmarks.model`: `python -m benchmarks._model_worker JSON`, its result the last line printed.

A process of its own, because the number of threads and the backend are fixed once the backend has been imported.
"""

import itertools
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

FILTERS, KERNEL = (32, 16, 16, 32), 5
Shape = tuple[int, int, int, int]


def forward_flops(shape: Shape) -> int:
    """Floating-point operations of one pass forward: 2·k·(in + F)·4F for every position and layer."""
    batch, steps, rows, channels = shape
    total = 0
    for filters in FILTERS:
        total += 2 * KERNEL * (channels + filters) * 4 * filters
        channels = filters
    return total * batch * steps * rows


def peak_gflops(repeats: int = 12) -> float:
    """The most that a float32 matrix product of 2,048 × 2,048 reached here, by Keras' backend or NumPy, in GFLOP/s."""
    import keras
    import numpy as np

    size = 2048
    one = np.random.default_rng(0).standard_normal((size, size)).astype("float32")
    two = keras.ops.convert_to_tensor(one)
    products: tuple[Callable[[], Any], ...] = (
        lambda: one @ one,
        lambda: keras.ops.convert_to_numpy(keras.ops.matmul(two, two)[0, 0]),
    )
    return 2 * size**3 / min(_seconds(product) for product in products for _ in range(repeats)) / 1e9


def autoencoder(kind: str, shape: Shape) -> Any:
    """A compiled autoencoder over windows of a shape; all kinds have about the parameters of the stock one."""
    import keras

    from models.layers import MaskedConvLSTM1D

    _, steps, rows, channels = shape
    layers = keras.layers
    values = keras.Input((steps, rows, channels))
    inputs, x = [values], values
    if kind in {"lstm", "conv1d"}:
        x = layers.Reshape((steps * rows, channels))(x)
        units = _units(kind, channels)
        for size in (units, units // 2, units // 2, units):
            if kind == "lstm":
                x = layers.LSTM(size, return_sequences=True)(x)
            else:
                x = layers.Conv1D(size, KERNEL, padding="same", activation="relu")(x)
        x = layers.Reshape((steps, rows, units))(x)
    elif kind == "stock":
        for filters in FILTERS:
            x = layers.ConvLSTM1D(filters, KERNEL, padding="same", return_sequences=True)(x)
    else:
        mask = keras.Input((steps, rows), dtype="bool")
        inputs = [values, mask] if "masked" in kind else [values]
        for filters in FILTERS:
            layer = MaskedConvLSTM1D(filters, KERNEL, padding="same", return_sequences=True)
            x = layer(x, mask=mask if "masked" in kind else None)
    model = keras.Model(inputs, layers.Dense(channels)(x))
    if "parts" in kind:  # as `models.autoencoder.Autoencoder` does
        halves = [keras.ops.split(values, 2, axis=0)[part] for part in (0, 1)]
        model = keras.Model(inputs, keras.ops.concatenate([model(half) for half in halves], axis=0))
    model.compile("adam", "mse", jit_compile="xla" in kind or keras.backend.backend() == "jax")
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the first step twice
    return model


def _units(kind: str, channels: int) -> int:
    """How many units give the network of a kind about as many parameters as ours has."""
    sizes = zip((channels, *FILTERS), FILTERS, strict=False)
    wanted = sum(KERNEL * (below + here) * 4 * here + 4 * here for below, here in sizes)

    def parameters(units: int) -> int:
        chain = (channels, units, units // 2, units // 2, units)
        if kind == "lstm":
            return sum(4 * here * (below + here + 1) for below, here in itertools.pairwise(chain))
        return sum((KERNEL * below + 1) * here for below, here in itertools.pairwise(chain))

    return min(range(8, 400, 2), key=lambda units: abs(parameters(units) - wanted))


def speed(shapes: list[Shape], kinds: list[str], repeats: int) -> list[dict[str, Any]]:
    """For every shape and kind the median seconds of a prediction and of a train step, and those of the first call."""
    return [one for shape in shapes for one in _speed_at(shape, kinds, repeats)]


def _speed_at(shape: Shape, kinds: list[str], repeats: int) -> Iterator[dict[str, Any]]:
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    first: dict[tuple[str, str], float] = {}
    for kind in kinds:
        for what, call in _calls(kind, shape).items():
            first[kind, what] = _seconds(call)
            call()
            calls[kind, what] = call
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(repeats):  # interleaved, so that a slow moment of the machine meets all alike
        for key, call in calls.items():
            seconds[key].append(_seconds(call))
    for (kind, what), taken in seconds.items():
        flops = forward_flops(shape) * (3 if what == "train" else 1)
        median = statistics.median(taken)
        yield {
            "shape": shape,
            "kind": kind,
            "what": what,
            "seconds": median,
            "gflops": flops / median / 1e9 if kind not in {"lstm", "conv1d"} else None,
            "first call": first[kind, what],
        }


def _calls(kind: str, shape: Shape) -> dict[str, Callable[[], Any]]:
    """A prediction and a train step of a model, each waiting for its result."""
    import keras
    import numpy as np

    random = np.random.default_rng(0)
    values = random.standard_normal(shape).astype("float32")
    mask = np.ones(shape[:3], bool)
    mask[:, :, shape[2] // 2 :] = "half" not in kind
    data = [values, mask] if "masked" in kind else [values]
    keras.utils.set_random_seed(0)
    model = autoencoder(kind, shape)
    return {
        "predict": lambda: model.predict_on_batch(data),
        "train": lambda: model.train_on_batch(data, values),
    }


def first_step(shape: Shape, kind: str) -> dict[str, float]:
    """Seconds of the first train step and the first prediction of a process, tracing and compiling included."""
    calls = _calls(kind, shape)
    return {what: _seconds(calls[what]) for what in ("train", "predict")}


def memory(shape: Shape, kind: str) -> float:
    """Peak memory in MiB that three train steps and predictions add to the process."""
    before = _peak_mib()
    calls = _calls(kind, shape)
    for call in calls.values():
        for _ in range(3):
            call()
    return _peak_mib() - before


def steady(shape: Shape, kind: str, what: str, seconds: float, barrier: str) -> float:
    """Calls a second over some seconds, begun once every process of the test has written its file to a folder."""
    call = _calls(kind, shape)[what]
    for _ in range(3):
        call()
    folder, wanted = Path(barrier), 2
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < wanted:
        time.sleep(0.01)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - began)


def loss_curves(shape: Shape, steps: int = 20) -> dict[str, list[float]]:
    """Losses of the stock layer and of ours over train steps on one batch, from the same weights."""
    import keras
    import numpy as np

    values = np.random.default_rng(1).standard_normal(shape).astype("float32")
    keras.utils.set_random_seed(0)
    stock, ours = autoencoder("stock", shape), autoencoder("ours", shape)
    ours.set_weights(stock.get_weights())
    return {
        name: [float(model.train_on_batch(values, values)) for _ in range(steps)]
        for name, model in (("stock", stock), ("ours", ours))
    }


def half_masked(where: str, seeds: int, epochs: int, windows: int = 512) -> dict[str, dict[str, list[float]]]:
    """Validation error on valid cells, and on those at the ends of sequences, of ours and of stock with zero filling.

    Sums of two sine waves and noise, `(windows, 8, 8, 2)`. Half of the rows are masked on average: with "ends" each
    sequence ends at a random row, with "gaps" stretches of four rows are missing. All predict the next row of each
    valid row and are trained with the same masked loss, so that only what the layers make of masked rows differs.
    """
    import keras
    import numpy as np
    from keras import ops

    from models.layers import MaskedConvLSTM1D

    def data(count: int, random: Any) -> tuple[Any, Any]:
        time_ = np.arange(65)[None, :, None]
        waves = [
            np.sin(2 * np.pi * time_ / random.uniform(6, 30, (count, 1, 2)) + random.uniform(0, 6.3, (count, 1, 2)))
            for _ in range(2)
        ]
        series = (sum(waves) + 0.1 * random.standard_normal((count, 65, 2))).astype("float32")
        if where == "gaps":
            return series, np.repeat(random.random((count, 16)) < 0.5, 4, axis=1)
        return series, np.arange(64)[None] < random.integers(4, 61, count)[:, None]

    class NextRow(keras.Model):
        def compute_loss(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool = True) -> Any:  # noqa: ARG002
            return ops.sum(sample_weight * ops.square(y - y_pred)) / ops.sum(sample_weight)

    def model(kind: str) -> Any:
        values, mask = keras.Input((8, 8, 2)), keras.Input((8, 8), dtype="bool")
        x = ops.where(mask[..., None], values, 0)
        for _ in range(2):
            if kind == "stock":
                x = keras.layers.ConvLSTM1D(16, 3, padding="same", return_sequences=True)(x)
            else:
                layer = MaskedConvLSTM1D(16, 3, padding="same", return_sequences=True, partial=kind == "partial")
                x = layer(x, mask=mask)
        network = NextRow([values, mask], keras.layers.Dense(2)(x))
        network.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
        return network

    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        sets = []
        for count in (windows, windows):
            series, valid = data(count, random)
            shown = np.where(valid[..., None], series[:, :64], 0).reshape(-1, 8, 8, 2)
            weight = np.repeat(valid[..., None], 2, -1).astype("float32")
            sets.append(([shown, valid.reshape(-1, 8, 8)], series[:, 1:].reshape(-1, 8, 8, 2), weight, valid))
        (x, y, weight, _), (new_x, new_y, _, new_valid) = sets
        ends = new_valid & ~np.pad(new_valid[:, 3:], [(0, 0), (0, 3)])
        for kind in ("stock", "ours", "partial"):
            keras.utils.set_random_seed(seed)
            network = model(kind)
            network.fit(x, y, sample_weight=weight.reshape(y.shape), batch_size=64, epochs=epochs, verbose=0)
            error = np.square(new_y - network.predict(new_x, verbose=0)).reshape(windows, 64, 2).mean(-1)
            places = found.setdefault(kind, {"valid": [], "ends": []})
            places["valid"].append(float(error[new_valid].mean()))
            places["ends"].append(float(error[ends].mean()))
    return found


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Set the threads, do one task, print its result."""
    task = json.loads(sys.argv[1])
    if task.get("cores"):
        os.sched_setaffinity(0, set(task["cores"]))
    threads = task.get("threads")
    if threads and os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(len(task.get("cores") or os.sched_getaffinity(0)))
    made: Any = globals()[task["task"]](**task.get("with", {}))
    result = {"made": made}
    if task.get("peak"):
        result["peak"] = peak_gflops()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
