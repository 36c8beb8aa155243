"""The autoencoder over windows: built from a config, trained to predict what it is not shown, saved as plain files."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from models.layers import MaskedConvLSTM1D

Values = NDArray[np.float32]
Flags = NDArray[np.bool_]
Windows = tuple[Values, Flags, Flags]
"""values `(n, steps, rows, channels)` float32, observed (same shape) bool, mask `(n, steps, rows)` bool."""

WEIGHTS = "model.weights.h5"
CONFIG = "model.json"
LEARNING_RATE = 1e-2


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The shape of a window, and of the network: filters of the encoder's layers, kernel in rows, latent per step."""

    steps: int
    rows: int
    channels: int
    filters: tuple[int, ...] = (24,)
    kernel: int = 3
    latent: int = 16

    def __post_init__(self) -> None:
        """Raise ValueError for a size below 1."""
        sizes = (self.steps, self.rows, self.channels, self.kernel, self.latent, *self.filters)
        if not self.filters or min(sizes) < 1:
            raise ValueError(f"Every size of the autoencoder must be at least 1, and it needs filters; got {self}.")

    @property
    def bottleneck(self) -> int:
        """How many numbers stand for a window: `latent` per step, but at most half as many as the window has cells."""
        return max(1, min(self.latent * self.steps, self.steps * self.rows * self.channels // 2))


class Autoencoder(keras.Model):
    """A functional model whose loss is `masked_loss`, with the weights of cells as sample weights."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return `masked_loss` of a batch: y true values, sample_weight the cells that count."""
        del x, training
        return masked_loss(y, y_pred, sample_weight)


def build_autoencoder(config: AutoencoderConfig, seed: int = 0) -> Autoencoder:
    """Return the model: `{"values", "visible", "mask"}` to expected values `(batch, steps, rows, channels)` float32.

    values are scaled readings, visible is 1 where the network may see the cell (same shape), mask `(batch, steps,
    rows)` is true where a row is a real step. What stands in invisible cells or masked rows is never read.

    The encoder's last layer returns only its last state, and all that reaches the decoder is a linear map of it to
    `config.bottleneck` numbers a window: at most half as many as the cells that must come back. So a window cannot be
    copied, only described. The map reads all rows at once, so that a row knows the end of the segment before; a row
    that was never valid holds 0 there and adds nothing. The decoder gets the same numbers at every step and unrolls
    them in time. The same seed gives the same weights.
    """
    shape = (config.steps, config.rows, config.channels)
    values = keras.Input(shape, name="values")
    visible = keras.Input(shape, name="visible")
    mask = keras.Input(shape[:2], dtype="bool", name="mask")
    seeds = iter(range(1000 * seed, 1000 * seed + 1000))

    def layer(filters: int, sequences: bool) -> MaskedConvLSTM1D:
        return MaskedConvLSTM1D(
            filters,
            config.kernel,
            return_sequences=sequences,
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)),
            recurrent_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
        )

    def dense(units: int, name: str) -> keras.layers.Dense:
        return keras.layers.Dense(
            units, kernel_initializer=keras.initializers.GlorotUniform(seed=next(seeds)), name=name
        )

    seen = visible > 0
    x = ops.concatenate([ops.where(seen, values, 0), ops.cast(seen, values.dtype)], axis=-1)
    last = len(config.filters) - 1
    for place, filters in enumerate(config.filters):
        x = layer(filters, sequences=place < last)(x, mask=mask)
    x = dense(config.bottleneck, "latent")(ops.reshape(x, (-1, config.rows * config.filters[-1])))
    x = ops.reshape(dense(config.rows * config.filters[-1], "rows")(x), (-1, 1, config.rows, config.filters[-1]))
    x = ops.repeat(x, config.steps, axis=1)
    for filters in reversed(config.filters):
        x = layer(filters, sequences=True)(x, mask=mask)
    expected = ops.where(mask[..., None], dense(config.channels, "expected")(x), 0)
    model = Autoencoder({"values": values, "visible": visible, "mask": mask}, expected)
    model.jit_compile = False  # see `fit`; a nightly process is a new one each time, and would compile each time
    return model


def masked_loss(values: Any, expected: Any, weight: Any) -> Any:
    """Return the mean over sequences of Σ w·huber(error) / Σ w, a scalar.

    values, expected and weight are `(batch, steps, rows, channels)`; weight is 0 where a cell does not count.

    Let e = values − expected and huber(e) = ½e² for |e| ≤ 1, |e| − ½ beyond. The loss of a sequence is the mean of
    huber over the cells that count, Σ w·huber(e) / Σ w. Its gradient by an expected cell, w·clip(e, ±1) / Σ w,
    is 0 where w = 0 and depends on no other sequence; so a long sequence weighs no more than a short one, and padding
    nothing.
    A mean over all cells, Σ w·huber(e) / (steps·rows·channels), would shrink with the share of padding instead.
    Sequences without a counting cell have no mean and are left out of the mean over the batch. Values are replaced
    where w = 0, not multiplied, because NaN × 0 is NaN.
    """
    weight = ops.cast(weight, expected.dtype)
    error = ops.where(weight > 0, values - expected, 0)
    size = ops.abs(error)
    huber = ops.where(size <= 1, 0.5 * size * size, size - 0.5)
    total = ops.sum(weight, axis=(1, 2, 3))
    each = ops.sum(weight * huber, axis=(1, 2, 3)) / ops.where(total > 0, total, 1)
    count = ops.sum(ops.cast(total > 0, expected.dtype))
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
) -> dict[str, list[float]]:
    """Train by masked prediction; return the losses by epoch, `{"loss": […], "val_loss": […]}`.

    Every epoch hides another share `hide` of the observed cells from the network, and with `groups` > 0 in half of the
    windows one of the channel groups (see `hide_group`) of the last segment, while the loss counts all observed cells.
    The learning rate falls along a cosine; with a validation set training stops once it no longer improves, and the
    best weights are restored. The same seed gives the same weights on a CPU. `on_epoch(epoch, logs)` is called after
    every epoch, which counts from 0.

    Raises ValueError without windows, for shapes that do not fit together, and for an observed cell that is not finite.
    """
    if not len(values):
        raise ValueError("There are no windows to train on: give fit at least one.")
    training = _Batches(values, observed, mask, batch=batch, seed=seed, hide=hide, groups=groups, shuffle=True)
    held_out = None
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=on_epoch)] if on_epoch else []
    if validation is not None:
        held_out = _Batches(*validation, batch=batch, seed=seed + 1, hide=hide, groups=groups, shuffle=False)
        callbacks.append(keras.callbacks.EarlyStopping(patience=max(3, epochs // 5), restore_best_weights=True))
    keras.utils.set_random_seed(seed)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, decay_steps=epochs * len(training), alpha=0.02)
    # Without XLA: compiling would take longer than it saves in a training of a few minutes.
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), jit_compile=False)
    history = model.fit(
        training, validation_data=held_out, epochs=epochs, callbacks=callbacks, verbose=0, shuffle=False
    )
    return {name: [float(loss) for loss in losses] for name, losses in history.history.items()}


def expect(
    model: Autoencoder, values: Values, observed: Flags, mask: Flags, *, hidden: Flags | None = None, batch: int = 256
) -> Values:
    """Return what the model expects in every cell, `(n, steps, rows, channels)` float32, 0 in rows that the mask hides.

    The network sees the observed cells that are not `hidden` (same shape). A window's result depends neither on the
    other windows nor on their order.
    """
    if not len(values):
        return np.zeros(values.shape, np.float32)
    batches = _Batches(values, observed, mask, batch=batch, hidden=hidden)
    return np.asarray(model.predict(batches, verbose=0), dtype=np.float32)[: len(values)]


def last_segment(mask: Flags) -> NDArray[np.int64]:
    """Return for each window the index of the last step with a real row, `(n,)`; −1 where there is none."""
    valid: Flags = np.any(mask, axis=2)
    return np.where(np.any(valid, axis=1), mask.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1), -1)


class _Batches(keras.utils.PyDataset):
    """Windows in batches `(inputs, true values, weights)`; the last is filled with fully masked windows.

    So all batches have one shape, and a model is traced once. Order and hidden cells are drawn anew for every epoch.
    """

    def __init__(
        self,
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
        self.values, self.observed, self.mask = values, _countable(values, observed, mask), mask
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
        parts = (np.where(visible, values, 0), visible, self.mask[chosen], np.where(observed, values, 0), observed)
        shown, visible, mask, values, weight = (_filled(part, self.batch) for part in parts)
        inputs = {"values": shown, "visible": visible.astype(np.float32), "mask": mask}
        return inputs, values, weight.astype(np.float32)


def _countable(values: Values, observed: Flags, mask: Flags) -> Flags:
    """Return the observed cells in real rows; raise ValueError where shapes or values do not fit."""
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


def save_model(model: Autoencoder, config: AutoencoderConfig, folder: Path) -> None:
    """Write the weights (HDF5) and the config (JSON) into a folder, made if it is missing; no code is stored."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    model.save_weights(folder / WEIGHTS)


def load_model(folder: Path) -> tuple[Autoencoder, AutoencoderConfig]:
    """Return the model that `save_model` wrote, with the same weights to the bit, and its config.

    Raises FileNotFoundError if a file is missing, and ValueError if the weights do not fit the config.
    """
    fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config = AutoencoderConfig(**{**fields, "filters": tuple(fields["filters"])})
    model = build_autoencoder(config)
    model.load_weights(folder / WEIGHTS)
    return model, config
