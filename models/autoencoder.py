"""The autoencoder over windows: built from a config, trained to predict what it is not shown, saved as plain files."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from models import devices
from models.layers import MaskedConvLSTM1D, MaskedMaxPooling1D

Values = NDArray[np.float32]
Flags = NDArray[np.bool_]
Windows = tuple[Values, Flags, Flags]
"""values `(n, steps, rows, channels)` float32, observed (same shape) bool, mask `(n, steps, rows)` bool."""

WEIGHTS = "model.weights.h5"
CONFIG = "model.json"
CODE = Path(__file__).parent  # its sources say how a network is built and trained
LEARNING_RATE = 1e-2
# So many parts of a batch are computed side by side. With TF_NUM_INTRAOP_THREADS=1, one thread for each operation, that
# is faster than threads within operations (docs/benchmarks.md). Not the number of cores, as all machines add up alike.
PARTS = 2

KINDS = ("convlstm1d", "conv1d", "lstm")
HEADS = ("full", "steps", "last", "mean")
LOSSES = ("huber", "squared")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The shape of a window, and of the network.

    steps: of a window; a shorter one needs no padding
    rows, channels: of a step
    filters: of the encoder's layers
    kernel: in rows
    latent: numbers per step that pass the bottleneck of the head "full"
    strides: of the encoder's layers, one for all or one for each
    pooling: how many rows become one after each of the encoder's layers; 1: none
    stem: filters of a convolution over the rows of each step, ahead of the encoder; 0: none
    head: what is expected, from what: "full", every cell, from a decoder behind a bottleneck; "steps", every cell,
        from the encoder's state at its step; "last", the newest segment, from the last state; "mean", the newest
        segment, from the mean of the states over the steps in which a row is real
    loss: of an error, "huber" or "squared"
    kind: of the network: "convlstm1d"; "conv1d", convolutions over a window's readings and over its segments; "lstm",
        an LSTM whose input is a segment with all its cells. The last two have no strides, pooling or stem
    precision: the dtype policy of the layers, by Keras' name; weights, expected values and loss are float32 in each
    """

    steps: int
    rows: int
    channels: int
    filters: tuple[int, ...] = (24,)
    kernel: int = 3
    latent: int = 16
    strides: int | tuple[int, ...] = 1
    pooling: int = 1
    stem: int = 0
    head: str = "full"
    loss: str = "huber"
    kind: str = "convlstm1d"
    precision: str = "float32"

    def __post_init__(self) -> None:
        """Raise ValueError for a field that no network can have, with what it wants."""
        for name in ("steps", "rows", "channels", "kernel", "latent", "pooling"):
            self._want(name, _is_size(getattr(self, name)), "a whole number of at least 1", "give one")
        self._want("stem", self.stem == 0 or _is_size(self.stem), "a whole number of at least 0", "give 0 for none")
        self._want("filters", _are_sizes(self.filters), "whole numbers of at least 1", "give one for each layer")
        self._want("head", self.head in HEADS, f"one of {HEADS}", "choose one")
        self._want("loss", self.loss in LOSSES, f"one of {LOSSES}", "choose one")
        self._want("kind", self.kind in KINDS, f"one of {KINDS}", "choose one")
        self._want("precision", self.precision in PRECISIONS, f"one of {PRECISIONS}", "choose one")
        for name, none in (("strides", 1), ("pooling", 1), ("stem", 0)):
            fits = self.kind == "convlstm1d" or getattr(self, name) == none
            self._want(name, fits, f"{none} with kind={self.kind!r}", "leave it out")
        layers = len(self.filters)
        fits = _is_size(self.strides) or (_are_sizes(self.strides) and len(self.layer_strides) == layers)
        wanted = f"one stride of at least 1, or as many as filters ({layers})"
        self._want("strides", fits, wanted, "give one for each layer, or the decoder cannot undo them")
        reach = max(self.layer_strides) <= self.kernel
        self._want("strides", reach, f"at most kernel={self.kernel}", "take a longer kernel, or some rows are not read")
        self._check_rows()

    def _check_rows(self) -> None:
        rows = self.rows
        for place, stride in enumerate(self.layer_strides):
            for name, factor in (("strides", stride), ("pooling", self.pooling)):
                wanted = f"at most the {rows} rows that reach it in layer {place}"
                self._want(name, factor <= rows, wanted, "take a smaller one, or fewer layers")
                rows = _shrunk(rows, factor)

    def _want(self, name: str, fits: bool, wanted: str, cure: str) -> None:
        if not fits:
            raise ValueError(
                f"AutoencoderConfig was given {name}={getattr(self, name)!r}, but it needs {wanted}: {cure}."
            )

    @property
    def layer_strides(self) -> tuple[int, ...]:
        """The stride of each of the encoder's layers."""
        return (self.strides,) * len(self.filters) if isinstance(self.strides, int) else self.strides

    @property
    def factors(self) -> tuple[int, ...]:
        """How many rows become one in each of the encoder's layers and its pooling."""
        return tuple(stride * self.pooling for stride in self.layer_strides)

    @property
    def layer_rows(self) -> tuple[int, ...]:
        """How many rows each of the encoder's layers reads, and how many the last one leaves."""
        rows = [self.rows]
        for factor in self.factors:
            rows.append(_shrunk(rows[-1], factor))
        return tuple(rows)

    @property
    def body(self) -> "AutoencoderConfig":
        """The config of what lies behind the first layer: for all kinds but "convlstm1d" a segment is one row there."""
        if self.kind == "convlstm1d":
            return self
        kernel = 1 if self.kind == "lstm" else self.kernel
        return replace(self, rows=1, channels=self.rows * self.channels, kernel=kernel)

    @property
    def newest(self) -> bool:
        """Whether the newest segment is expected, `(rows, channels)`, not the window `(steps, rows, channels)`."""
        return self.head in {"last", "mean"}

    @property
    def bottleneck(self) -> int:
        """How many numbers stand for a window: `latent` per step, but at most half as many as the window has cells."""
        return max(1, min(self.latent * self.steps, self.steps * self.rows * self.channels // 2))


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) > 0 and all(map(_is_size, values))


def _shrunk(rows: int, factor: int) -> int:
    return math.ceil(rows / factor)


class Autoencoder(keras.Model):
    """A functional model with its config, whose loss is `masked_loss`, with the weights of cells as sample weights."""

    config: AutoencoderConfig
    parts: int = 1

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the expected values of a batch, computed in `parts` equal parts side by side."""
        if self.parts == 1:
            return super().call(inputs, training=training, mask=mask)
        split = {name: ops.split(value, self.parts, axis=0) for name, value in inputs.items()}
        parts = [{name: values[part] for name, values in split.items()} for part in range(self.parts)]
        return ops.concatenate([super(Autoencoder, self).call(part, training=training) for part in parts], axis=0)

    def divide(self, batch: int) -> None:
        """Compute batches of this size in parts, if each device's share is even; a GPU takes its share at once."""
        parts = 1 if devices.find_devices().gpus or batch % (PARTS * devices.replicas(self)) else PARTS
        if parts != self.parts:
            self.parts = parts
            self.train_function = self.test_function = self.predict_function = None  # traced for the other number

    def _maybe_symbolic_build(self, *_: Any, **__: Any) -> None:
        """Do nothing: all is built, and for several devices Keras would take the mean of a batch, flags included."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return `masked_loss` of a batch: y true values, sample_weight the cells that count."""
        del x, training
        shares = devices.replicas(self)
        return masked_loss(y, y_pred, sample_weight, self.config.loss, lambda count: devices.summed(count, shares))


def build_autoencoder(config: AutoencoderConfig, seed: int = 0) -> Autoencoder:
    """Return the model: `{"values", "visible", "mask"}` to expected values, float32, 0 in rows that the mask hides.

    values `(batch, steps, rows, channels)` are scaled readings, visible is 1 where the network may see the cell (same
    shape), mask `(batch, steps, rows)` is true where a row is a real step. What stands in invisible cells or masked
    rows is never read. Expected values have the shape of values; with the heads "last" and "mean" they are of each
    window's newest segment, `(batch, rows, channels)`, which the network then never sees. Batches may have fewer
    `steps` than the config, all numbers stay the same. The same seed gives the same weights.

    Where the machine has several GPUs, they share each batch of `fit` and `expect`.
    """
    with devices.scope():
        return _build(config, seed)


def _build(config: AutoencoderConfig, seed: int) -> Autoencoder:
    shape = (config.rows, config.channels)
    values = keras.Input((None, *shape), name="values")
    visible = keras.Input((None, *shape), name="visible")
    mask = keras.Input((None, config.rows), dtype="bool", name="mask")
    seen = visible > 0
    if config.newest:
        newest = _newest(mask)
        seen = ops.logical_and(seen, ops.logical_not(newest[..., None, None]))
    parts = _Parts(config.body, seed)
    x = ops.concatenate([ops.where(seen, values, 0), ops.cast(seen, values.dtype)], axis=-1)
    states, masks = {"convlstm1d": _encode, "conv1d": _convolve, "lstm": _encode_segments}[config.kind](parts, x, mask)
    if config.head == "full":
        x, real = (_deconvolve if config.kind == "conv1d" else _decode)(parts, states, masks), mask
    elif config.newest:
        real = ops.any(ops.logical_and(mask, newest[..., None]), axis=1)
        x = _project(parts, states if config.head == "last" else _mean(states, masks[-1]))
    else:
        x, real = _project(parts, states), mask
    if x.shape[-2] < config.rows:
        x = _finer(x, config.rows, config.rows)
    model = Autoencoder({"values": values, "visible": visible, "mask": mask}, ops.where(real[..., None], x, 0))
    model.config = config
    model.jit_compile = False  # see `fit`; a nightly process is a new one each time, and would compile each time
    return model


class _Parts:
    """Makes the layers of one network, each with the next seeds."""

    def __init__(self, config: AutoencoderConfig, seed: int) -> None:
        self.config = config
        self.seeds = iter(range(1000 * seed, 1000 * seed + 1000))

    def glorot(self) -> Any:
        return keras.initializers.GlorotUniform(seed=next(self.seeds))

    def recurrent(self, filters: int, sequences: bool, strides: int = 1) -> MaskedConvLSTM1D:
        return MaskedConvLSTM1D(
            filters,
            self.config.kernel,
            strides=strides,
            padding="same",
            return_sequences=sequences,
            kernel_initializer=self.glorot(),
            recurrent_initializer=keras.initializers.Orthogonal(seed=next(self.seeds)),
            dtype=self.config.precision,
        )

    def dense(self, units: int, name: str) -> keras.layers.Dense:
        precision = "float32" if name == "expected" else self.config.precision
        return keras.layers.Dense(units, kernel_initializer=self.glorot(), name=name, dtype=precision)

    def stem(self) -> keras.layers.Conv2D:
        """A convolution over the rows of each step: a kernel of one step by `kernel` rows, for any number of steps."""
        return keras.layers.Conv2D(
            self.config.stem,
            (1, self.config.kernel),
            padding="same",
            data_format="channels_last",
            activation="relu",
            kernel_initializer=self.glorot(),
            name="stem",
            dtype=self.config.precision,
        )

    def convolution(self, filters: int, dilation: int = 1) -> keras.layers.Conv1D:
        return keras.layers.Conv1D(
            filters,
            self.config.kernel,
            padding="same",
            dilation_rate=dilation,
            activation="elu",
            kernel_initializer=self.glorot(),
            dtype=self.config.precision,
        )


def _encode(parts: _Parts, x: Any, mask: Any) -> tuple[Any, list[Any]]:
    """Return the last layer's states, and the masks of the rows that each layer reads and that the last one leaves.

    The states are `(batch, steps, rows, filters)`, or the last one `(batch, rows, filters)` where the head wants no
    more. It depends on valid cells only, and a row that was never valid holds 0.
    """
    config = parts.config
    if config.stem:
        x = ops.where(mask[..., None], parts.stem()(ops.where(mask[..., None], x, 0)), 0)
    masks, last = [mask], len(config.filters) - 1
    for place, (filters, stride) in enumerate(zip(config.filters, config.layer_strides, strict=True)):
        sequences = place < last or config.head in {"steps", "mean"}
        layer = parts.recurrent(filters, sequences, stride)
        x = layer(x, mask=masks[-1])
        mask = layer.cell.output_mask(masks[-1])
        if config.pooling > 1:
            pool = MaskedMaxPooling1D(config.pooling)
            x = _pooled(x, mask, pool)
            mask = pool.compute_mask(x, mask)
        masks.append(mask)
    return x, masks


def _encode_segments(parts: _Parts, x: Any, mask: Any) -> tuple[Any, list[Any]]:
    """Return what `_encode` does, of an LSTM over segments: that is what a ConvLSTM1D of one row and kernel 1 is."""
    return _encode(parts, _segments(ops.where(mask[..., None], x, 0)), ops.any(mask, axis=-1, keepdims=True))


def _convolve(parts: _Parts, x: Any, mask: Any) -> tuple[Any, list[Any]]:
    """Return the states of segments, `(batch, steps, 1, filters)`, or the newest one's, as `_encode` does, and masks.

    Convolutions over the readings, one behind the other; then each segment becomes one row, and residual convolutions
    with dilations 1, 2, 4, … reach over the window's segments (a temporal convolutional network: Bai, Kolter and
    Koltun 2018, but looking both ways). Ahead of each, what is masked is set to 0, as is what lies beyond the ends.
    """
    config, segment = parts.config, ops.any(mask, axis=-1, keepdims=True)
    for filters in config.filters:
        x = _over_readings(parts.convolution(filters), x, mask)
    x = parts.dense(filters, "segments")(_segments(ops.where(mask[..., None], x, 0)))
    for reach in range((config.steps - 1).bit_length()):
        x = x + _over_readings(parts.convolution(filters, 2**reach), x, segment)
    x = ops.where(segment[..., None], x, 0)
    if config.head == "last":
        x = ops.sum(ops.where(_newest(mask)[..., None, None], x, 0), axis=1)
    return x, [mask, segment]


def _deconvolve(parts: _Parts, states: Any, masks: list[Any]) -> Any:
    """Return what is expected of every cell, from at most half as many numbers as each segment has cells."""
    config, rows = parts.config, masks[0].shape[-1]
    x = parts.dense(max(1, config.bottleneck // config.steps), "latent")(states)
    x = _finer(parts.dense(rows * config.filters[-1], "rows")(x), rows, rows)
    for filters in reversed(config.filters):
        x = _over_readings(parts.convolution(filters), x, masks[0])
    return parts.dense(config.channels // rows, "expected")(x)


def _over_readings(layer: keras.layers.Conv1D, x: Any, mask: Any) -> Any:
    """Return the layer's convolution over all rows of all steps, one behind the other; masked rows count as 0."""
    rows = x.shape[2]
    readings = keras.layers.Reshape((-1, x.shape[3]))(ops.where(mask[..., None], x, 0))
    return keras.layers.Reshape((-1, rows, layer.filters))(layer(readings))


def _segments(x: Any) -> Any:
    """Return `(batch, steps, rows, channels)` with each segment as one row, `(batch, steps, 1, rows·channels)`."""
    return keras.layers.Reshape((-1, 1, x.shape[2] * x.shape[3]))(x)


def _pooled(x: Any, mask: Any, pool: MaskedMaxPooling1D) -> Any:
    """Return the greatest of neighbouring rows: of those valid now, of a last state of those ever valid."""
    if len(x.shape) == 4:
        return pool(x, mask=mask)
    return pool(x[:, None], mask=ops.any(mask, axis=1, keepdims=True))[:, 0]


def _decode(parts: _Parts, state: Any, masks: list[Any]) -> Any:
    """Return what the decoder expects of every cell, from the encoder's last state through the bottleneck.

    All that reaches the decoder is a linear map of the state to `config.bottleneck` numbers a window: at most half as
    many as the cells that must come back. So a window cannot be copied, only described. The map reads all rows at once,
    so that a row knows the end of the segment before. The decoder gets the same numbers at every step, unrolls them in
    time, and goes back through the encoder's row counts, whatever the strides were.
    """
    config = parts.config
    rows, filters = config.layer_rows[-1], config.filters[-1]
    x = parts.dense(config.bottleneck, "latent")(ops.reshape(state, (-1, rows * filters)))
    x = ops.reshape(parts.dense(rows * filters, "rows")(x), (-1, 1, rows, filters))
    x = ops.where(masks[-1][..., None], x, 0)  # at every step that there is
    for place in reversed(range(len(config.filters))):
        if config.factors[place] > 1:
            units = config.factors[place] * config.filters[place]
            x = _finer(parts.dense(units, f"finer_{place}")(x), config.layer_rows[place], config.factors[place])
        x = parts.recurrent(config.filters[place], sequences=True)(x, mask=masks[place])
    return parts.dense(config.channels, "expected")(x)


def _project(parts: _Parts, states: Any) -> Any:
    """Return a linear map of each row of states to the channels of the rows that it stands for."""
    factor = math.prod(parts.config.factors)
    x = parts.dense(factor * parts.config.channels, "expected")(states)
    return _finer(x, parts.config.rows, factor) if factor > 1 else x


def _finer(x: Any, rows: int, factor: int) -> Any:
    """Return `(batch, …, rows, channels)` from `(batch, …, ⌈rows/factor⌉, factor·channels)`: a row becomes `factor`.

    The channels become rows as in Shi et al. 2016, "Real-time single image and video super-resolution using an
    efficient sub-pixel convolutional neural network". Row r comes from row r // factor, which is valid where r is.
    """
    steps = (-1,) if len(x.shape) == 4 else ()
    reshape = keras.layers.Reshape((*steps, x.shape[-2] * factor, x.shape[-1] // factor))
    x = reshape(ops.copy(x))  # a copy carries no mask, which Reshape would warn of
    return x[..., :rows, :]


def _mean(states: Any, mask: Any) -> Any:
    """Return each row's mean state over the steps in which it is valid, `(batch, rows, filters)`; 0 for none."""
    count = ops.sum(ops.cast(mask[..., None], states.dtype), axis=1)
    return ops.sum(states, axis=1) / ops.maximum(count, 1)  # states are 0 where the mask is


def _newest(mask: Any) -> Any:
    """Return `(batch, steps)` bool: true at the last step with a real row, nowhere where there is none."""
    real = ops.any(mask, axis=-1)
    later = ops.flip(ops.cumsum(ops.cast(ops.flip(real, axis=1), "int32"), axis=1), axis=1)
    return ops.logical_and(real, ops.equal(later, 1))  # a symbolic tensor has no ==


def masked_loss(
    values: Any, expected: Any, weight: Any, loss: str = "huber", over_all: Callable[[Any], Any] = lambda count: count
) -> Any:
    """Return the mean over sequences of Σ w·huber(error) / Σ w, a scalar; with "squared", ½·error² stands for huber.

    values, expected and weight are `(batch, steps, rows, channels)` or `(batch, rows, channels)`; weight is 0 where a
    cell does not count.

    Let e = values − expected and huber(e) = ½e² for |e| ≤ 1, |e| − ½ beyond. The loss of a sequence is the mean of
    huber over the cells that count, Σ w·huber(e) / Σ w. Its gradient by an expected cell, −w·clip(e, ±1) / Σ w
    (−w·e / Σ w for the squared error), is 0 where w = 0 and depends on no other sequence; so a long sequence weighs no
    more than a short one, and padding nothing.
    A mean over all cells, Σ w·huber(e) / (steps·rows·channels), would shrink with the share of padding instead.
    Sequences without a counting cell have no mean and are left out of the mean over the batch. Values are replaced
    where w = 0, not multiplied, because NaN × 0 is NaN.

    `over_all` gives the number of sequences in the whole batch from that in this device's share of it: the losses of
    the shares then add up to that of the batch, however the sequences are dealt out.
    """
    weight = ops.cast(weight, expected.dtype)
    error = ops.where(weight > 0, values - expected, 0)
    size = ops.abs(error)
    half_square = 0.5 * size * size
    cost = ops.where(size <= 1, half_square, size - 0.5) if loss == "huber" else half_square
    cells = tuple(range(1, len(expected.shape)))
    total = ops.sum(weight, axis=cells)
    each = ops.sum(weight * cost, axis=cells) / ops.where(total > 0, total, 1)
    count = over_all(ops.sum(ops.cast(total > 0, expected.dtype)))
    return ops.sum(each) / ops.maximum(count, 1)


def fit(
    model: Autoencoder,
    values: Values,
    observed: Flags,
    mask: Flags,
    *,
    validation: Windows | None = None,
    epochs: int = 10,
    batch: int = 64,
    seed: int = 0,
    hide: float = 0.2,
    groups: int = 0,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    checkpoints: "Checkpoints | None" = None,
) -> dict[str, list[float]]:
    """Train by masked prediction; return the losses by epoch, `{"loss": […], "val_loss": […]}`.

    Every epoch hides another share `hide` of the observed cells from the network, and with `groups` > 0 in half of the
    windows one of the channel groups (see `hide_group`) of the last segment, while the loss counts all observed cells
    that the head expects.
    The learning rate falls along a cosine; with a validation set training stops once it no longer improves, and the
    best weights are restored. The same seed gives the same weights on a CPU. `on_epoch(epoch, logs)` is called after
    every epoch, which counts from 0.

    With `checkpoints` every epoch is kept, and a fit that was cut short goes on after the last one: `on_epoch` is
    called for the epochs of old, and the weights in the end are those of a fit that was not disturbed. Only a fit of
    the same network to the same windows by the same arguments and the same code goes on.

    Raises ValueError without windows, for shapes that do not fit together or to the model, and for an observed cell
    that is not finite.
    """
    if not len(values):
        raise ValueError("There are no windows to train on: give fit at least one.")
    config = model.config
    training = _Batches(config, values, observed, mask, batch=batch, seed=seed, hide=hide, groups=groups, shuffle=True)
    held_out, stopping = None, None
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=on_epoch)] if on_epoch else []
    if validation is not None:
        held_out = _Batches(config, *validation, batch=batch, seed=seed + 1, hide=hide, groups=groups, shuffle=False)
        stopping = keras.callbacks.EarlyStopping(patience=max(3, epochs // 5), restore_best_weights=True)
        callbacks.append(stopping)
    keras.utils.set_random_seed(seed)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, decay_steps=epochs * len(training), alpha=0.02)
    with devices.scope_of(model):
        # Without XLA: on a CPU it takes longer to compile, and the parts of a batch no longer run side by side.
        model.compile(_optimizer(model, rate), jit_compile=False)
        model.optimizer.build(model.trainable_variables)  # else TensorFlow traces the first step twice
    model.divide(batch)
    progress = _Progress(training, stopping)
    if checkpoints is not None:
        arguments = (epochs, batch, seed, hide, groups)
        progress.key = _fit_digest(model, arguments, (values, observed, mask, *(validation or ())))
        progress.checkpoints = checkpoints
        progress.take_up(model, on_epoch)
    model.fit(
        training, validation_data=held_out, epochs=epochs, callbacks=[*callbacks, progress], verbose=0, shuffle=False,
        initial_epoch=epochs if progress.stopped else progress.epoch,
    )  # fmt: skip
    return progress.losses


State = Mapping[str, NDArray[Any]]
"""How far a fit has come, as arrays by name."""


class Checkpoints(Protocol):
    """Where `fit` keeps how far it has come."""

    def load(self, key: str) -> State | None:
        """Return what was last saved under the key; None where there is nothing, or nothing that can be read."""

    def save(self, key: str, state: State) -> None:
        """Keep the state under the key, in place of what was there, whole or not at all."""


class _Progress(keras.callbacks.Callback):
    """Keeps after every epoch what the rest of a fit depends on, and takes it up again.

    That is the weights, the optimizer, what early stopping remembers, and how many epochs' order and hidden cells were
    drawn; the network itself draws nothing.
    """

    def __init__(self, training: "_Batches", stopping: keras.callbacks.EarlyStopping | None) -> None:
        super().__init__()
        self.training, self.stopping = training, stopping
        self.checkpoints: Checkpoints | None = None
        self.key, self.epoch, self.stopped = "", 0, False
        self.losses: dict[str, list[float]] = {}
        self.remembered: State | None = None

    def take_up(self, model: Autoencoder, on_epoch: Callable[[int, dict[str, float]], None] | None) -> None:
        """Go on from what was kept, if anything was."""
        state = self.checkpoints.load(self.key) if self.checkpoints else None
        if state is None:
            return
        self.remembered = state
        self.epoch, self.training.epoch = int(state["epoch"]), int(state["drawn"])
        self.stopped = bool(state["stopped"])
        self.losses = {name[5:]: losses.tolist() for name, losses in state.items() if name.startswith("loss_")}
        model.set_weights(_listed(state, "weight"))
        for variable, value in zip(model.optimizer.variables, _listed(state, "optimizer"), strict=True):
            variable.assign(value)
        for epoch in range(self.epoch):
            if on_epoch:
                on_epoch(epoch, {name: losses[epoch] for name, losses in self.losses.items()})

    def on_train_begin(self, logs: Any = None) -> None:
        """Tell early stopping what it knew; it has just forgotten all."""
        del logs
        state, stopping = self.remembered, self.stopping
        if state is None or stopping is None:
            return
        stopping.wait, stopping.best_epoch = int(state["wait"]), int(state["best_epoch"])
        stopping.best, stopping.best_weights = float(state["best"]), _listed(state, "best_weight")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Note the losses, and keep all that the next epoch depends on."""
        for name, loss in (logs or {}).items():
            self.losses.setdefault(name, []).append(float(loss))
        if self.checkpoints is None:
            return
        state = {
            "epoch": np.array(epoch + 1), "drawn": np.array(self.training.epoch),
            "stopped": np.array(self.model.stop_training),
            **{f"loss_{name}": np.array(losses) for name, losses in self.losses.items()},
            **_named("weight", self.model.get_weights()),
            **_named("optimizer", [np.asarray(variable) for variable in self.model.optimizer.variables]),
        }  # fmt: skip
        if self.stopping is not None:
            kept = ("wait", "best", "best_epoch")
            state |= {name: np.array(getattr(self.stopping, name)) for name in kept}
            state |= _named("best_weight", self.stopping.best_weights)
        self.checkpoints.save(self.key, state)


def _named(name: str, arrays: list[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}.{number}": np.asarray(array) for number, array in enumerate(arrays)}


def _listed(state: State, name: str) -> list[NDArray[Any]]:
    count = sum(key.startswith(f"{name}.") for key in state)
    return [state[f"{name}.{number}"] for number in range(count)]


def _fit_digest(model: Autoencoder, arguments: tuple[float, ...], windows: tuple[NDArray[Any], ...]) -> str:
    """Return 32 hex digits of all that decides which weights a fit ends with."""
    policy = keras.config.dtype_policy().name
    facts = [asdict(model.config), arguments, PARTS, LEARNING_RATE, keras.version(), keras.backend.backend(), policy]
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    for file in sorted(CODE.glob("*.py")):
        digest.update(file.read_bytes())
    for array in (*model.get_weights(), *windows):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class SharedAdam(keras.optimizers.Adam):
    """Adam that clips the norm of the whole batch's gradient, where Keras clips that of each device's share."""

    shares: int = 1

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        if self.shares == 1:
            return super()._clip_gradients(grads)
        clipped = super()._clip_gradients([devices.summed(grad, self.shares) for grad in grads])
        return [grad / self.shares for grad in clipped]  # they are added up once more behind this


def _optimizer(model: Autoencoder, rate: Any) -> keras.optimizers.Optimizer:
    adam = SharedAdam(rate, global_clipnorm=1.0)
    adam.shares = devices.replicas(model)
    return keras.optimizers.LossScaleOptimizer(adam) if model.config.precision == "mixed_float16" else adam


def expect(
    model: Autoencoder, values: Values, observed: Flags, mask: Flags, *, hidden: Flags | None = None, batch: int = 256
) -> Values:
    """Return what the model expects in every cell, `(n, steps, rows, channels)` float32, 0 in rows that the mask hides.

    With the heads "last" and "mean" it is `(n, rows, channels)`, of each window's `last_segment`. The network sees the
    observed cells that are not `hidden` (same shape). A window's result depends neither on the other windows nor on
    their order. Raises ValueError as `fit` does, but for no windows.
    """
    if not len(values):
        return np.zeros((0, *values.shape[2 if model.config.newest else 1 :]), np.float32)
    batch *= devices.replicas(model)
    batches = _Batches(model.config, values, observed, mask, batch=batch, hidden=hidden)
    model.divide(batch)
    if devices.replicas(model) > 1:
        found = model.predict(batches, verbose=0)
    else:  # `predict` makes a dataset for each call, of which TensorFlow 2.21 keeps one or two megabytes for good
        found = np.concatenate([model.predict_on_batch(batches[i][0]) for i in range(len(batches))])
    return np.asarray(found, dtype=np.float32)[: len(values)]


def last_segment(mask: Flags) -> NDArray[np.int64]:
    """Return for each window the index of the last step with a real row, `(n,)`; −1 where there is none."""
    valid: Flags = np.any(mask, axis=2)
    return np.where(np.any(valid, axis=1), mask.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1), -1)


class _Batches(keras.utils.PyDataset):
    """Windows in batches `(inputs, true values, weights)`; the last is filled with fully masked windows.

    True values and weights are of the cells that the head expects: the whole window, or its newest segment.

    So all batches have one shape, and a model is traced once. Order and hidden cells are drawn anew for every epoch.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        values: Values,
        observed: Flags,
        mask: Flags,
        *,
        batch: int,
        hidden: Flags | None = None,
        seed: int = 0,
        hide: float = 0.0,
        groups: int = 0,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.values, self.observed, self.mask = values, _countable(config, values, observed, mask), mask
        self.newest = config.newest
        self.batch, self.seed, self.epoch = batch, seed, 0
        self.hide, self.groups, self.shuffle = hide, groups, shuffle
        self.order = np.arange(len(values))
        self.hidden = np.zeros_like(self.observed) if hidden is None else hidden
        self.drawn = hidden is None and (hide > 0 or groups > 0)
        self.on_epoch_begin()

    def on_epoch_begin(self) -> None:
        """Draw the order and the hidden cells of the next epoch; without shuffling all epochs are the first."""
        random = np.random.default_rng([self.seed, self.epoch])
        if self.shuffle:
            self.order = random.permutation(len(self.values))
            self.epoch += 1
        if self.drawn:
            self.hidden = _hidden(self.mask, self.observed.shape, self.hide, self.groups, random)

    def __len__(self) -> int:
        return math.ceil(len(self.values) / self.batch)

    def __getitem__(self, index: int) -> tuple[dict[str, Any], Values, Values]:
        chosen = self.order[index * self.batch : (index + 1) * self.batch]
        observed = self.observed[chosen]
        visible = observed & ~self.hidden[chosen]
        values = self.values[chosen]
        mask, shown = self.mask[chosen], np.where(visible, values, 0)
        if self.newest:
            target = (np.arange(len(chosen)), last_segment(mask))
            values, observed = values[target], observed[target]
        parts = (shown, visible, mask, np.where(observed, values, 0), observed)
        shown, visible, mask, values, weight = (_filled(part, self.batch) for part in parts)
        inputs = {"values": shown, "visible": visible.astype(np.float32), "mask": mask}
        return inputs, values, weight.astype(np.float32)


def _countable(config: AutoencoderConfig, values: Values, observed: Flags, mask: Flags) -> Flags:
    """Return the observed cells in real rows; raise ValueError where shapes or values do not fit."""
    shape = (config.rows, config.channels)
    if values.ndim != 4 or values.shape[2:] != shape or values.shape[1] > config.steps:
        raise ValueError(
            f"autoencoder was given values of shape {values.shape}, but it needs (n, steps, {shape[0]}, {shape[1]}) "
            f"with at most {config.steps} steps: cut the windows so, or build it with their rows and channels."
        )
    if values.shape != observed.shape or values.shape[:3] != mask.shape:
        raise ValueError(
            f"values {values.shape}, observed {observed.shape} and mask {mask.shape} do not fit together: "
            "pass (n, steps, rows, channels) twice, and (n, steps, rows)."
        )
    cells = observed & mask[..., None]
    if not np.isfinite(values[cells]).all():
        raise ValueError("An observed cell is NaN or infinite: mark it as not observed.")
    return cells


def _hidden(mask: Flags, shape: tuple[int, ...], hide: float, groups: int, random: np.random.Generator) -> Flags:
    """Return cells to hide: a random share, and in half of the windows one channel group of the last segment."""
    hidden = random.random(shape, dtype=np.float32) < hide
    if groups:
        drawn = random.integers(2 * groups, size=shape[0])  # numbers that are no group leave the segment visible
        hidden |= hide_group(last_segment(mask), shape, drawn, groups)
    return hidden


def hide_group(target: NDArray[np.int64], shape: tuple[int, ...], group: NDArray[np.int64] | int, groups: int) -> Flags:
    """Return cells `shape` = (n, steps, rows, channels) to hide: one group of channels in each window's target step.

    Channel c is in group c modulo `groups`: with 1 the whole segment is predicted from what came before it, with 2 each
    half of the channels also from the other half, so that a sensor that stops agreeing with the others stands out.
    """
    at_target = np.arange(shape[1]) == target[:, None]
    in_group = np.arange(shape[3]) % groups == np.broadcast_to(group, shape[:1])[:, None]
    return np.broadcast_to(at_target[:, :, None, None] & in_group[:, None, None, :], shape)


def _filled(part: NDArray[Any], batch: int) -> NDArray[Any]:
    """Append zeros up to `batch` windows."""
    return np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), part.dtype)])


def same_size(config: AutoencoderConfig) -> AutoencoderConfig:
    """Return the config with filters that give a network of its kind about as many parameters as "convlstm1d" has.

    The filters stay in proportion to one another; a network of the kind "convlstm1d" stays as it is.
    """
    if config.kind == "convlstm1d":
        return config
    scales, wanted = (1, 2, 3), _parameters(replace(config, kind="convlstm1d"))
    # The number of parameters is a parabola of the filters, and so of their common scale.
    *bends, start = np.polyfit(scales, [_parameters(_widened(config, scale)) for scale in scales], 2)
    return _widened(config, float(np.roots([*bends, start - wanted]).real.max()))


def _widened(config: AutoencoderConfig, scale: float) -> AutoencoderConfig:
    return replace(config, filters=tuple(max(1, round(filters * scale)) for filters in config.filters))


def _parameters(config: AutoencoderConfig) -> int:
    return int(build_autoencoder(config).count_params())


def save_model(model: Autoencoder, config: AutoencoderConfig, folder: Path) -> None:
    """Write the weights (HDF5) and the config (JSON) into a folder, made if it is missing; no code is stored."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    model.save_weights(folder / WEIGHTS)


def load_model(folder: Path) -> tuple[Autoencoder, AutoencoderConfig]:
    """Return the model that `save_model` wrote, with the same weights to the bit, and its config.

    Raises FileNotFoundError if a file is missing, and ValueError if the weights do not fit the config.
    """
    fields: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    fields = {name: tuple(field) if isinstance(field, list) else field for name, field in fields.items()}
    config = AutoencoderConfig(**fields)
    model = build_autoencoder(config)
    model.load_weights(folder / WEIGHTS)
    return model, config
