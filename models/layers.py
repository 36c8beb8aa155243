"""The masked convolutional LSTM over rows: what a mask hides changes nothing that it shows."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

# Up to so many steps the recurrence is written out, which runs about a fifth faster in graph mode; longer ones are a
# `scan`, whose graph (and so the time to trace it) does not grow with the number of steps.
UNROLLED_STEPS = 16


@keras.saving.register_keras_serializable(package="nightsift")
class MaskedConvLSTM1D(keras.layers.Layer):
    """`keras.layers.ConvLSTM1D` (Shi et al. 2015) that keeps to a mask of valid rows.

    Called as `layer(inputs, mask=mask)` with inputs `(batch, steps, rows, channels)` and a boolean mask
    `(batch, steps, rows)` or `(batch, steps)`; without a mask every row is valid. Returns
    `(batch, steps, rows, filters)`, 0 in masked places, or with `return_sequences=False` the carried state
    `(batch, rows, filters)`, 0 for a row that was never valid.

    The meaning of the mask, and why:

    - Inputs are replaced by 0 in masked places before the convolution. They are chosen, never multiplied, because
      NaN × 0 is NaN; so gradients there are exactly 0.
    - State and output advance per row: where a row is masked, `h` and `c` stay as they were. A step without a valid row
      therefore changes nothing, and a row that comes back goes on from what it remembers.
    - The recurrent convolution sees the carried `h` of all rows. It depends on valid inputs only, and a row that was
      never valid still holds 0, which is what the convolution pads with; so neither masked values nor appended rows
      leak. Zeroing `h` of masked rows here would throw away what they remember, and would break the equality with
      the stock layer under a `(batch, steps)` mask.

    So what stands in masked places, how many masked rows or steps follow, and which sequences share the batch change no
    valid output and no gradient; with nothing masked the layer equals the stock one. Weights have the stock layer's
    names, shapes and order, so `set_weights` works in both directions.

    Raises ValueError for other strides than 1, for another padding than "same" (both would change the number of rows,
    and the mask with it), and for inputs or a mask of the wrong shape.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int] | list[int],
        strides: int | tuple[int] | list[int] = 1,
        padding: str = "same",
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        return_sequences: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = _one("kernel_size", kernel_size)
        self.strides = _one("strides", strides)
        self.padding = padding.lower()
        if self.strides != 1 or self.padding != "same":
            raise ValueError(
                f"{self.name} was given strides={strides} and padding={padding!r}; "
                'only strides=1 with padding="same" keep every row in its place, so leave both at their defaults.'
            )
        self.activation = keras.activations.get(activation)
        self.recurrent_activation = keras.activations.get(recurrent_activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.unit_forget_bias = unit_forget_bias
        self.return_sequences = return_sequences
        self.supports_masking = True
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Add kernel, recurrent kernel and bias, as the stock layer does."""
        rows, channels = input_shape[-2:]
        if rows is None or channels is None:
            raise ValueError(f"{self.name} needs a fixed number of rows and channels; it was given {input_shape}.")
        gates = 4 * self.filters
        self.kernel = self.add_weight(
            shape=(self.kernel_size, channels, gates), initializer=self.kernel_initializer, name="kernel"
        )
        self.recurrent_kernel = self.add_weight(
            shape=(self.kernel_size, self.filters, gates),
            initializer=self.recurrent_initializer,
            name="recurrent_kernel",
        )
        self.bias = self.add_weight(shape=(gates,), initializer=self._bias, name="bias") if self.use_bias else None
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-2: rows, -1: channels})

    def _bias(self, shape: tuple[int], dtype: Any = None) -> Any:
        """Bias of the gates i, f, c, o; that of f starts at 1 with `unit_forget_bias` (Jozefowicz et al. 2015)."""
        if not self.unit_forget_bias:
            return self.bias_initializer(shape, dtype=dtype)
        parts = [self.bias_initializer((count * self.filters,), dtype=dtype) for count in (1, 2)]
        return ops.concatenate([parts[0], ops.ones((self.filters,), dtype=dtype), parts[1]])

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Return the outputs, or the last state; see the class."""
        valid = self._valid(inputs, mask)
        steps, rows, channels = inputs.shape[1:]
        x = ops.where(valid, ops.transpose(inputs, (1, 0, 2, 3)), 0)
        # All steps and all gates in one convolution, hoisted out of the recurrence.
        drive = _conv(ops.reshape(x, (-1, rows, channels)), self._fused(self.kernel))
        if self.bias is not None:
            drive = drive + self._fused(self.bias)
        drive = ops.reshape(drive, (-1 if steps is None else steps, ops.shape(inputs)[0], rows, 4 * self.filters))
        states = self._recurrence()(drive, self._fused(self.recurrent_kernel), valid)
        if not self.return_sequences:
            return states[-1]
        return ops.transpose(ops.where(valid, states, 0), (1, 0, 2, 3))

    def _valid(self, inputs: Any, mask: Any) -> Any:
        """Return the mask as bool, `(steps, batch, rows, 1)`."""
        batch, steps, rows, _ = ops.shape(inputs)
        if mask is None:
            return ops.ones((steps, batch, rows, 1), dtype="bool")
        self._check_mask(inputs.shape, mask.shape)
        mask = ops.cast(mask, "bool")
        if len(mask.shape) == 2:
            mask = ops.broadcast_to(mask[..., None], (batch, steps, rows))
        return ops.transpose(mask, (1, 0, 2))[..., None]

    def _check_mask(self, inputs: tuple[int | None, ...], mask: tuple[int | None, ...]) -> None:
        """Raise ValueError unless the mask has the inputs' leading dimensions."""
        fits = len(mask) in {2, 3} and all(
            have is None or want is None or have == want for have, want in zip(mask, inputs[:3], strict=False)
        )
        if not fits:
            raise ValueError(
                f"{self.name} was given a mask of shape {tuple(mask)} for inputs of shape {tuple(inputs)}; "
                "pass a mask (batch, steps, rows) or (batch, steps) that says which rows of the inputs are real."
            )

    @property
    def _fast(self) -> bool:
        return self.activation is keras.activations.tanh and self.recurrent_activation is keras.activations.sigmoid

    def _fused(self, weight: Any) -> Any:
        """Reorder gates from i, f, c, o to i, f, o, c; halve i, f, o where one tanh serves all gates."""
        i, f, c, o = ops.split(ops.cast(weight, self.compute_dtype), 4, axis=-1)
        sigmoids = ops.concatenate([i, f, o], axis=-1)
        return ops.concatenate([0.5 * sigmoids if self._fast else sigmoids, c], axis=-1)

    def _recurrence(self) -> Callable[[Any, Any, Any], Any]:
        if self._fast:
            return _fast_recurrence
        return lambda drive, kernel, valid: _recurrence(
            drive, kernel, valid, self.activation, self.recurrent_activation
        )

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Return the mask of the outputs: the inputs' own, or None for a last state."""
        del inputs
        return mask if self.return_sequences else None

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return `(batch, steps, rows, filters)`, without steps for a last state."""
        batch, steps, rows, _ = input_shape
        return (batch, steps, rows, self.filters) if self.return_sequences else (batch, rows, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "activation": keras.activations.serialize(self.activation),
            "recurrent_activation": keras.activations.serialize(self.recurrent_activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "recurrent_initializer": keras.initializers.serialize(self.recurrent_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "unit_forget_bias": self.unit_forget_bias,
            "return_sequences": self.return_sequences,
        }


def _one(name: str, value: int | tuple[int] | list[int]) -> int:
    """Return a size given as a number or as a sequence of one number."""
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if len(sizes) != 1 or sizes[0] < 1:
        raise ValueError(f"{name} must be one positive number, for the rows; it is {value!r}.")
    return sizes[0]


def _conv(x: Any, kernel: Any) -> Any:
    """Convolve `(batch, rows, in)` with `(size, in, out)`, as many rows out as in."""
    return ops.conv(x, kernel, padding="same")


def _scan(step: Callable[..., tuple[Any, ...]], start: tuple[Any, ...], each: tuple[Any, ...], reverse: bool) -> Any:
    """Run `step(carry, each[s])` over the first axis of `each`; return the carries after every step, stacked."""
    steps = each[0].shape[0]
    if steps is None or steps > UNROLLED_STEPS:
        # Scanned over the place alone: on TensorFlow Keras 3.15 fails to scan several tensors of unknown length.
        place = ops.arange(ops.shape(each[0])[0])
        return ops.scan(lambda carry, s: (step(carry, _at(each, s)),) * 2, start, place, reverse=reverse)[1]
    carry, carries = start, [()] * steps
    parts = list(zip(*(ops.unstack(part, num=steps) for part in each), strict=True))
    for s in reversed(range(steps)) if reverse else range(steps):
        carry = carries[s] = step(carry, parts[s])
    return tuple(ops.stack(part) for part in zip(*carries, strict=True))


def _at(each: tuple[Any, ...], place: Any) -> tuple[Any, ...]:
    return tuple(ops.take(part, place, axis=0) for part in each)


def _recurrence(drive: Any, kernel: Any, valid: Any, activation: Any, recurrent_activation: Any) -> Any:
    """Return the states h `(steps, batch, rows, filters)`; any activations, gradient by the backend.

    drive `(steps, batch, rows, 4·filters)` is the inputs' part of the gates i, f, o, c;
    valid is `(steps, batch, rows, 1)`.
    """
    filters = kernel.shape[1]

    def step(carry: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[Any, ...]:
        (h, c), (x, keep) = carry, now
        z = x + _conv(h, kernel)
        i, f, o = ops.split(recurrent_activation(z[..., : 3 * filters]), 3, axis=-1)
        new_c = f * c + i * activation(z[..., 3 * filters :])
        return ops.where(keep, o * activation(new_c), h), ops.where(keep, new_c, c)

    zero = ops.zeros_like(drive[0, ..., :filters])
    return _scan(step, (zero, zero), (drive, valid), reverse=False)[0]


def _fast_recurrence(drive: Any, kernel: Any, valid: Any) -> Any:
    """Return `_recurrence` for tanh and sigmoid, from halved gates i, f, o, with a gradient written by hand.

    sigmoid(z) = ½·tanh(z/2) + ½, so with z halved in i, f, o one t = tanh(z) over all gates gives
    i, f, o = ½·t + ½ and g = t. Where a row is valid, c' = f·c + i·g, u = tanh(c'), h' = o·u. Backwards, with dh, dc
    the gradients of the state after a step and d tanh = 1 − tanh²:

        dc  += dh·o·(1 − u²)
        dz   = (½·dc·g, ½·dc·c, ½·dh·u, dc·i)·(1 − t²)
        dh   = convolutionᵀ(dz),    dc = dc·f

    and where it is masked, dz = 0 and dh, dc pass by. Everything but dh and dc is known before the loop, so it is
    computed there for all steps at once: P (dz's factors), Q = o·(1 − u²), and what is kept of dc and dh.
    """
    filters = kernel.shape[1]
    scale = ops.convert_to_tensor([0.5] * 3 * filters + [1.0] * filters, dtype=drive.dtype)
    shift = ops.convert_to_tensor([0.5] * 3 * filters + [0.0] * filters, dtype=drive.dtype)
    zero = ops.zeros_like(drive[0, ..., :filters])

    def forward_step(kernel: Any, carry: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[Any, ...]:
        (h, c, _, _), (x, keep) = carry, now
        t = ops.tanh(x + _conv(h, kernel))
        i, f, o, g = ops.split(t * scale + shift, 4, axis=-1)
        new_c = f * c + i * g
        u = ops.tanh(new_c)
        return ops.where(keep, o * u, h), ops.where(keep, new_c, c), t, u

    def backward_step(kernel: Any, carry: tuple[Any, ...], now: tuple[Any, ...]) -> tuple[Any, ...]:
        (dh, dc, _), (dy, p, q, keep_c, keep_h) = carry, now
        dh = dh + dy
        dc = dc + dh * q
        dz = ops.concatenate([dc, dc, dh, dc], axis=-1) * p
        return dh * keep_h + _conv_transposed(dz, kernel), dc * keep_c, dz

    @ops.custom_gradient
    def run(drive: Any, kernel: Any) -> Any:
        start = (zero, zero, ops.zeros_like(drive[0]), zero)
        h, c, t, u = _scan(lambda *a: forward_step(kernel, *a), start, (drive, valid), reverse=False)

        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, Any]:
            dy = args[0] if upstream is None else upstream
            i, f, o, g = ops.split(t * scale + shift, 4, axis=-1)
            factors = ops.concatenate([g, _before(c), u, 2 * i], axis=-1) * (0.5 - 0.5 * t * t)
            known = (
                ops.where(valid, factors, 0),
                ops.where(valid, o * (1 - u * u), 0),
                ops.where(valid, f, 1),
                1 - ops.cast(valid, drive.dtype),
            )
            start = (zero, zero, ops.zeros_like(drive[0]))
            dz = _scan(lambda *a: backward_step(kernel, *a), start, (dy, *known), reverse=True)[2]
            return dz, _kernel_gradient(_before(h), dz, kernel)

        return h, gradient

    return run(drive, kernel)


def _before(states: Any) -> Any:
    """Return the states before each step, from those after it; the first is 0."""
    return ops.concatenate([ops.zeros_like(states[:1]), states[:-1]], axis=0)


def _conv_transposed(dz: Any, kernel: Any) -> Any:
    """Return the gradient `(batch, rows, in)` of `_conv`'s x: one product, then a sum of shifted parts."""
    size, channels, gates = kernel.shape
    rows = dz.shape[1]
    left = (size - 1) // 2
    parts = ops.split(ops.matmul(dz, ops.transpose(ops.reshape(kernel, (size * channels, gates)))), size, axis=-1)
    # Place j of output row r reads row r + j − left, so its gradient moves there.
    padded = [ops.pad(part, [(0, 0), (j, size - 1 - j), (0, 0)]) for j, part in enumerate(parts)]
    return sum(padded[1:], padded[0])[:, left : left + rows]


def _kernel_gradient(h: Any, dz: Any, kernel: Any) -> Any:
    """Return the gradient of the recurrent kernel over all steps, as one product."""
    size, channels, gates = kernel.shape
    rows = dz.shape[2]
    left = (size - 1) // 2
    padded = ops.pad(h, [(0, 0), (0, 0), (left, size - 1 - left), (0, 0)])
    seen = ops.concatenate([padded[:, :, j : j + rows] for j in range(size)], axis=-1)
    seen = ops.reshape(seen, (-1, size * channels))
    return ops.reshape(ops.matmul(ops.transpose(seen), ops.reshape(dz, (-1, gates))), kernel.shape)
