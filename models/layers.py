"""Masked convolutional layers over rows: what a mask hides changes nothing that it shows."""

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # Keras exports the layer, but not its cell

from models.recurrence import convolve, fused, is_fast, recur, recur_fast

Shape = tuple[int | None, ...]

WANTED = "(batch, steps, rows, channels)"
WANTED_FIRST = "(batch, steps, channels, rows)"


@keras.saving.register_keras_serializable(package="nightsift")
class MaskedConvLSTM1DCell(ConvLSTMCell):
    """One step of `MaskedConvLSTM1D`, for `RowsRNN`, `keras.layers.RNN` and `keras.layers.StackedRNNCells`.

    Called as `cell(inputs, [h, c])` with inputs `(batch, rows, channels)` and states `(batch, rows, filters)`; returns
    the outputs `(batch, rows, filters)` and the new states. Takes the arguments of `MaskedConvLSTM1D` that are not
    about sequences. An RNN hands its cell one tensor, so with `mask_channel=True` the last channel of the inputs is the
    mask of the rows (0 or 1), and the last channel of the outputs is the mask of theirs; so cells stack. Then outputs
    are 0 in masked places, while the states carry on as in the layer.

    `keras.layers.RNN` knows only vectors as outputs, so in a functional model it cannot tell the shape of its own:
    take `RowsRNN` there.

    Raises ValueError for sizes and shapes that cannot be, in a sentence that says what to change.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int] | list[int],
        strides: int | tuple[int] | list[int] = 1,
        padding: str = "valid",
        *,
        partial: bool = False,
        mask_channel: bool = False,
        **options: Any,
    ) -> None:
        name = options.get("name") or type(self).__name__
        _check_sizes(name, filters, kernel_size, strides, padding, options.get("dilation_rate", 1))
        super().__init__(1, filters, kernel_size, strides, padding, **options)
        self.partial = partial
        self.mask_channel = mask_channel
        self.state_size = ((None, filters), (None, filters))

    @property
    def reach(self) -> int:
        """How many rows the kernel spans."""
        return (self.kernel_size[0] - 1) * self.dilation_rate[0] + 1

    def rows_out(self, rows: int) -> int:
        """Return the number of rows of the outputs."""
        covered = rows if self.padding == "same" else rows - self.reach + 1
        return -(-covered // self.strides[0])

    def build(self, inputs_shape: Shape) -> None:
        """Add kernel, recurrent kernel and bias, as the stock cell does."""
        # `StackedRNNCells` hands over `(batch, output_size)`, where our output size is a pair.
        _, *sizes = keras.tree.flatten(inputs_shape)
        rows, channels = self.sizes((None, *sizes))
        if channels is not None:
            channels -= self.mask_channel
        _check_rows(self.name, self, rows, channels, tuple(inputs_shape))
        super().build((None, *self.swapped_sizes(rows, channels)))
        self.input_spec = None  # what it would say is said better by `_check_rows`
        state = self.swapped_sizes(self.rows_out(rows), self.filters)
        self.state_size = (state, state)
        self.output_size = self.swapped_sizes(self.rows_out(rows), self.filters + self.mask_channel)

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """Return the outputs and the states `[h, c]` after this step; see the class."""
        h, c = (self.swapped(state) for state in states)
        x, valid = self.swapped(inputs)[None], None
        drops = self.drops(inputs, states[0], training)
        if self.mask_channel:
            x, valid = x[..., :-1], x[..., -1:] != 0
        h, c, valid = self.advance(x, valid, h, c, *drops, training=training)
        y = h = h[0]
        if self.mask_channel:
            y = ops.concatenate([ops.where(valid[0], h, 0), ops.cast(valid[0], h.dtype)], axis=-1)
        return self.swapped(y), [self.swapped(h), self.swapped(c)]

    def drops(self, inputs: Any, h: Any, training: bool) -> tuple[list[Any] | None, list[Any] | None]:
        """Return the dropout masks of a step's inputs and of h, one for each gate i, f, c, o, or None for either.

        They are drawn as in the stock cell, so that the same seed gives the same ones, and hold for all steps.
        """
        drop = self.get_dropout_mask(inputs) if training and 0 < self.dropout < 1 else None
        recurrent_drop = self.get_recurrent_dropout_mask(h) if training and 0 < self.recurrent_dropout < 1 else None
        drop, recurrent_drop = (
            None if masks is None else [self.swapped(mask) for mask in masks] for masks in (drop, recurrent_drop)
        )
        if drop is not None and self.mask_channel:
            drop = [mask[..., :-1] for mask in drop]
        return drop, recurrent_drop

    def advance(
        self,
        x: Any,
        valid: Any,
        h: Any,
        c: Any,
        drop: Sequence[Any] | None = None,
        recurrent_drop: Sequence[Any] | None = None,
        training: bool = False,
        with_c: bool = True,
    ) -> tuple[Any, Any, Any]:
        """Take all steps of x `(steps, batch, rows, channels)`, valid `(steps, batch, rows, 1)` or None.

        Returns the states h after every step `(steps, batch, rows, filters)`, the last c `(batch, rows, filters)`, and
        which of these rows are valid, `(steps, batch, rows, 1)` or None.
        """
        fast = recurrent_drop is None and is_fast(self.activation, self.recurrent_activation)
        kernel = fused(ops.cast(self.recurrent_kernel, self.compute_dtype), fast)
        if valid is not None:
            x = ops.where(valid, x, 0)
        if drop is None and self._in_step:
            drive = self._gate_bias(fast)
            kernel = ops.concatenate([fused(ops.cast(self.kernel, self.compute_dtype), fast), kernel], axis=1)
        else:
            drive = self._drive(x, valid, drop, fast)
            x = drive[..., :0]
        if valid is not None:
            valid = self.output_mask(valid[..., 0])[..., None]
        if fast:
            states, c = recur_fast(x, drive, kernel, valid, h, c, remember=training, with_c=with_c)
        else:
            if recurrent_drop is not None:
                recurrent_drop = [recurrent_drop[gate] for gate in (0, 1, 3, 2)]  # o before c, as `fused` has them
            states, c = recur(x, drive, kernel, valid, h, c, self.activation, self.recurrent_activation, recurrent_drop)
        return states, c, valid

    @property
    def _in_step(self) -> bool:
        """Whether one convolution can read input and state together: both have the same rows and padding."""
        return self.padding == "same" and self.strides[0] == self.dilation_rate[0] == 1 and not self.partial

    def _gate_bias(self, halved: bool) -> Any:
        """Return the bias of the gates i, f, o, c, `(4·filters,)`."""
        if self.bias is None:
            return ops.zeros((4 * self.filters,), dtype=self.compute_dtype)
        return fused(ops.cast(self.bias, self.compute_dtype), halved)

    def _drive(self, x: Any, valid: Any, drop: Sequence[Any] | None, halved: bool) -> Any:
        """Return the inputs' part of the gates i, f, o, c, `(steps, batch, rows, 4·filters)`, all steps at once."""
        steps, _, rows, channels = x.shape
        batch = ops.shape(x)[1]
        kernel = ops.cast(self.kernel, self.compute_dtype)
        if drop is None:
            drive = self._convolve(ops.reshape(x, (-1, rows, channels)), fused(kernel, halved))
        else:
            parts = zip(drop, ops.split(kernel, 4, axis=-1), strict=True)
            gates = [self._convolve(ops.reshape(x * mask, (-1, rows, channels)), part) for mask, part in parts]
            drive = fused(ops.concatenate(gates, axis=-1), halved)
        if self.partial:
            drive = drive * self._weight(valid, rows)
        drive = drive + self._gate_bias(halved)
        return ops.reshape(drive, (-1 if steps is None else steps, batch, self.rows_out(rows), 4 * self.filters))

    def _convolve(self, x: Any, kernel: Any) -> Any:
        """Convolve `(n, rows, in)` with `(size, in, out)`; the padding on the left never depends on the rows."""
        rows, stride = x.shape[1], self.strides[0]
        left = right = 0
        if self.padding == "same":
            left = (self.reach - 1) // 2
            right = max(0, (self.rows_out(rows) - 1) * stride + self.reach - left - rows)
        return convolve(x, kernel, (left, right), stride, self.dilation_rate[0])

    def _weight(self, valid: Any, rows: int) -> Any:
        """Return size ÷ number of valid rows under the kernel, `(n, rows, 1)` (Liu et al. 2018).

        Rows beyond the ends count as masked, so masked rows appended there change nothing.
        """
        size = self.kernel_size[0]
        there = ops.ones((1, rows, 1), dtype=self.compute_dtype)
        if valid is not None:
            there = ops.reshape(ops.cast(valid, self.compute_dtype), (-1, rows, 1))
        seen = self._convolve(there, ops.ones((size, 1, 1), dtype=self.compute_dtype))
        return size / ops.cast(ops.maximum(seen, 1), self.compute_dtype)  # Torch makes it float32

    def output_mask(self, mask: Any) -> Any:
        """Return which rows of the outputs are valid, `(…, rows)` bool, from those of the inputs."""
        stride, step = self.strides[0], self.dilation_rate[0]
        if self.padding == "same":
            return mask if stride == 1 else _any_of(mask, stride)
        span = (self.rows_out(mask.shape[-1]) - 1) * stride + 1
        covered = [mask[..., j * step : j * step + span : stride] for j in range(self.kernel_size[0])]
        return covered[0] if len(covered) == 1 else ops.all(ops.stack(covered), axis=0)

    def compute_output_shape(self, inputs_shape: Shape) -> tuple[Shape, list[Shape]]:
        """Return the shapes of the outputs and of the two states."""
        rows, _ = self.sizes(inputs_shape)
        state, output = (
            (inputs_shape[0], *self.swapped_sizes(self.rows_out(rows), channels))
            for channels in (self.filters, self.filters + self.mask_channel)
        )
        return output, [state, state]

    def get_initial_state(self, batch_size: Any = None) -> list[Any]:
        """Return h and c for a start from nothing, zeros `(batch, rows, filters)`."""
        return [ops.zeros((batch_size, *state), dtype=self.compute_dtype) for state in self.state_size]

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "partial": self.partial, "mask_channel": self.mask_channel}

    def swapped(self, x: Any) -> Any:
        """Swap the last two axes under `data_format="channels_first"`: rows before channels, or back again."""
        return ops.swapaxes(x, -2, -1) if self.data_format == "channels_first" else x

    def sizes(self, shape: Shape) -> tuple[Any, Any]:
        """Return rows and channels out of a shape that ends with both."""
        rows, channels = self.swapped_sizes(*shape[-2:])
        return rows, channels

    def swapped_sizes(self, rows: Any, channels: Any) -> tuple[Any, Any]:
        """Return both in the order of `data_format`; given in that order, rows before channels."""
        return (channels, rows) if self.data_format == "channels_first" else (rows, channels)


_CELL_OPTIONS = frozenset(inspect.signature(ConvLSTMCell.__init__).parameters) - {"self", "rank", "kwargs"}


@keras.saving.register_keras_serializable(package="nightsift")
class MaskedConvLSTM1D(keras.layers.ConvLSTM1D):
    """`keras.layers.ConvLSTM1D` (Shi et al. 2015) that keeps to a mask of valid rows.

    Called as `layer(inputs, mask=mask)` with inputs `(batch, steps, rows, channels)` and a mask `(batch, steps, rows)`
    or `(batch, steps)`, bool or numbers that are 0 where masked; without a mask every row is valid. Returns
    `(batch, steps, rows, filters)`, 0 in masked places, or with `return_sequences=False` the carried state
    `(batch, rows, filters)`, 0 for a row that was never valid; with `return_state=True` followed by h and c, each
    `(batch, rows, filters)`. Takes all arguments of the stock layer, with its defaults, and has its weights, so that
    `set_weights` works in both directions. (`unroll` changes nothing: the recurrence chooses for itself.)

    The meaning of the mask, and why:

    - Inputs are replaced by 0 in masked places before the convolution. They are chosen, never multiplied, because
      NaN × 0 is NaN; so gradients there are exactly 0.
    - State and output advance per row: where a row is masked, `h` and `c` stay as they were. A step without a valid row
      therefore changes nothing, and a row that comes back goes on from what it remembers.
    - The recurrent convolution sees the carried `h` of all rows. It depends on valid inputs only, and a row that was
      never valid still holds 0, which is what the convolution pads with; so neither masked values nor appended rows
      leak. Zeroing `h` of masked rows here would throw away what they remember, and would break the equality with
      the stock layer under a `(batch, steps)` mask.
    - `padding="same"` puts half of the kernel's reach, rounded down, before the first row, however many rows follow, so
      that appended rows move nothing. (The stock layer splits the padding by the number of rows once there are
      strides.) Row r of the outputs is centred on row r·strides of the inputs, stands for that row and those up to the
      next centre, and is valid where any of them is. With `padding="valid"` a row of the outputs is valid where the
      kernel covers valid rows only.
    - With `go_backwards=True` outputs come in the order in which they were made, as in the stock layer, and the mask
      that goes on with them is reversed too.
    - `partial=True` divides the convolution of the inputs by the share of valid rows under the kernel (partial
      convolution, Liu et al. 2018). It helps where sequences end (docs/benchmarks.md), and is off because it changes
      the first and last rows of unmasked data.

    So what stands in masked places, how many masked rows or steps follow, and which sequences share the batch change no
    valid output and no gradient; with nothing masked (and stride 1) the layer equals the stock one.

    An initial state is `[h, c]`, each `(batch, rows, filters)`, rows counted after strides and padding. It is seen by
    the recurrent convolution whether its row is valid or not, so give 0 where nothing is known.

    Raises ValueError for sizes and shapes that cannot be, also on symbolic inputs: one sentence with what was given,
    what is wanted, and what to change.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int] | list[int],
        strides: int | tuple[int] | list[int] = 1,
        padding: str = "valid",
        *,
        partial: bool = False,
        **options: Any,
    ) -> None:
        name = options.get("name") or type(self).__name__
        _check_sizes(name, filters, kernel_size, strides, padding, options.get("dilation_rate", 1))
        of_cell = {key: options.pop(key) for key in _CELL_OPTIONS & options.keys()}
        cell = MaskedConvLSTM1DCell(
            filters,
            kernel_size,
            strides,
            padding,
            partial=partial,
            name="conv_lstm_cell",
            dtype=options.get("dtype"),
            **of_cell,
        )
        # Past the stock layer's own constructor, which would make the stock cell.
        keras.layers.RNN.__init__(self, cell, **options)

    @property
    def partial(self) -> bool:
        """Whether the convolution of the inputs is a partial one."""
        return self.cell.partial

    def __call__(self, sequences: Any, initial_state: Any = None, mask: Any = None, **options: Any) -> Any:
        """Check all shapes, of symbolic inputs too, and call the layer."""
        sequences, mask = _shaped(sequences), _shaped(mask)
        self._check(tuple(sequences.shape), initial_state)
        _check_mask(self.name, mask, self._rows_by_step(sequences.shape))
        return super().__call__(sequences, initial_state=initial_state, mask=mask, **options)

    def build(self, sequences_shape: Shape) -> None:
        """Add kernel, recurrent kernel and bias, and with `stateful=True` the states."""
        self._check(tuple(sequences_shape))
        super().build(sequences_shape)

    def call(self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False) -> Any:
        """Return the outputs, or the last state; see the class."""
        if mask is None:  # Keras forgets the mask that inputs carry once there is an initial state
            mask = getattr(sequences, "_keras_mask", None)
        batch = ops.shape(sequences)[0]
        x = self.cell.swapped(ops.swapaxes(sequences, 0, 1))
        valid = None if mask is None else self._valid(mask, ops.shape(x)[2])
        if self.go_backwards:
            x, valid = ops.flip(x, axis=0), None if valid is None else ops.flip(valid, axis=0)
        h, c = self._start(initial_state, batch)
        drops = self.cell.drops(sequences[:, 0], self.cell.swapped(h), training)
        states, c, valid = self.cell.advance(
            x, valid, h, c, *drops, training=training, with_c=self.return_state or self.stateful
        )
        self.cell.reset_dropout_mask()
        self.cell.reset_recurrent_dropout_mask()
        last = [self.cell.swapped(states[-1]), None if c is None else self.cell.swapped(c)]
        if self.stateful:
            for variable, value in zip(self.states, last, strict=True):
                variable.assign(value)
        outputs = last[0]
        if self.return_sequences:
            shown = states if valid is None else ops.where(valid, states, 0)
            outputs = ops.swapaxes(self.cell.swapped(shown), 0, 1)
        return (outputs, *last) if self.return_state else outputs

    def _valid(self, mask: Any, rows: int) -> Any:
        """Return the mask as bool, `(steps, batch, rows, 1)`."""
        mask = ops.transpose(ops.cast(mask, "bool"), (1, 0, *range(2, len(mask.shape))))[..., None]
        return mask if len(mask.shape) == 4 else ops.repeat(mask[..., None], rows, axis=2)

    def _start(self, initial_state: Any, batch: Any) -> list[Any]:
        """Return h and c before the first step, rows before channels."""
        if initial_state is None:
            # A copy, because the variables are written to while the backend still needs what they held.
            initial_state = [ops.copy(state) for state in self.states] if self.stateful else None
        if initial_state is None:
            initial_state = self.cell.get_initial_state(batch)
        return [self.cell.swapped(ops.cast(state, self.compute_dtype)) for state in initial_state]

    def _check(self, shape: Shape, initial_state: Any = None) -> None:
        """Raise ValueError unless inputs of this shape, and these initial states, fit the layer."""
        _check_rank(self.name, shape, WANTED_FIRST if self.data_format == "channels_first" else WANTED)
        rows, channels = self.cell.sizes(shape)
        _check_rows(self.name, self.cell, rows, channels, shape)
        if self.stateful:
            self._check_batch(shape)
        if initial_state is not None:
            state = (shape[0], *self.cell.compute_output_shape((shape[0], *shape[2:]))[1][0][1:])
            given = [tuple(one.shape) for one in map(_shaped, keras.tree.flatten(initial_state))]
            if len(given) != 2 or not all(_fits(one, state) for one in given):
                raise _mistake(
                    self.name,
                    f"initial states of shape {' and '.join(map(str, given))}",
                    f"two, h and c, of shape {state}",
                    f"pass initial_state=[h, c] with {_named(state, self.cell)}",
                )

    def _check_batch(self, shape: Shape) -> None:
        known = self._expected_batch_size
        if shape[0] is None and known is None:
            raise _mistake(
                self.name,
                f"inputs of shape {shape} with stateful=True",
                "a fixed batch",
                "give keras.Input a batch_size, or set stateful=False",
            )
        if known is not None and shape[0] not in {None, known}:
            raise _mistake(
                self.name,
                f"inputs of shape {shape} with stateful=True",
                f"the batch of {known} that its states were made for",
                f"pass {known} sequences at a time, filling the last batch with masked ones",
            )

    def _rows_by_step(self, shape: Shape) -> Shape:
        return (*shape[:2], self.cell.sizes(tuple(shape))[0])

    def compute_mask(self, _: Any, mask: Any = None) -> Any:
        """Return the mask of the outputs, None for a last state; a list with None for each state that is returned."""
        outputs = self._output_mask(mask) if self.return_sequences and mask is not None else None
        return [outputs, None, None] if self.return_state else outputs

    def _output_mask(self, mask: Any) -> Any:
        """Return the mask of the outputs; one of steps hides or shows all rows of a step, and stays one of steps."""
        if keras.backend.standardize_dtype(mask.dtype) != "bool":
            mask = ops.cast(mask, "bool")
        if len(mask.shape) == 3:
            mask = self.cell.output_mask(mask)
        return ops.flip(mask, axis=1) if self.go_backwards else mask

    def compute_output_shape(self, sequences_shape: Shape) -> Any:
        """Return the shape of the outputs, or with `return_state=True` of the outputs, h and c."""
        self._check(tuple(sequences_shape))
        return super().compute_output_shape(tuple(sequences_shape))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "partial": self.partial}


@keras.saving.register_keras_serializable(package="nightsift")
class RowsRNN(keras.layers.RNN):
    """`keras.layers.RNN` over cells whose outputs and states have rows, or any other shape, in functional models too.

    The stock class takes every output for a vector when it tells its shape; this one asks the cell by tracing it.
    Its mask is one of steps; raises ValueError for a mask of rows, which a cell takes as a channel of its inputs.
    """

    def __call__(self, sequences: Any, initial_state: Any = None, mask: Any = None, **options: Any) -> Any:
        """Check the mask, also the one that the inputs carry, and call the layer."""
        sequences, mask = _shaped(sequences), _shaped(mask)
        seen = getattr(sequences, "_keras_mask", None) if mask is None else mask
        if seen is not None and len(seen.shape) > 2:
            raise _mistake(
                self.name,
                f"a mask of shape {tuple(seen.shape)}",
                "one of shape (batch, steps)",
                "join a mask of rows to the inputs with keras.ops.concatenate as their last channel, for cells with "
                "mask_channel=True",
            )
        return super().__call__(sequences, initial_state=initial_state, mask=mask, **options)

    def compute_output_shape(self, sequences_shape: Shape) -> Any:
        """Return the shape of the outputs, or with `return_state=True` of the outputs and all states."""
        sequences = keras.KerasTensor(sequences_shape, dtype=self.compute_dtype)
        traced = keras.Operation.compute_output_spec(self, sequences)
        return keras.tree.map_structure(lambda one: one.shape, traced)


class _MaskedPooling1D(keras.layers.Layer):
    """Pools of `pool_size` rows, counted from the first row, so that appended rows move nothing."""

    def __init__(self, pool_size: int | tuple[int] | list[int] = 2, **options: Any) -> None:
        super().__init__(**options)
        self.pool_size = _one(self.name, "pool_size", pool_size)
        self.supports_masking = True

    def __call__(self, inputs: Any, mask: Any = None, **options: Any) -> Any:
        """Check all shapes, of symbolic inputs too, and call the layer."""
        inputs, mask = _shaped(inputs), _shaped(mask)
        shape = tuple(inputs.shape)
        self._check(shape)
        _check_mask(self.name, mask, shape[:3])
        return super().__call__(inputs, mask=mask, **options)

    def _check(self, shape: Shape) -> None:
        _check_rank(self.name, shape, WANTED)
        if shape[2] is None:
            raise _unknown(self.name, shape)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        """Return the pools `(batch, steps, ⌈rows ÷ pool_size⌉, channels)`, 0 where no row of them is valid."""
        valid = ops.ones_like(inputs[..., :1], dtype="bool") if mask is None else ops.cast(mask, "bool")[..., None]
        if len(valid.shape) == 3:
            valid = ops.repeat(valid[..., None], inputs.shape[2], axis=2)
        # A pool's rows stand behind one another along a new first axis.
        x, valid = (ops.stack(_pools(part, self.pool_size, axis=2)) for part in (inputs, valid))
        return ops.where(ops.any(valid, axis=0), self._pooled(x, valid), 0)

    @abstractmethod
    def _pooled(self, x: Any, valid: Any) -> Any:
        """Return one row for each pool, from its rows along the first axis; what an empty pool gets is not read."""

    def compute_mask(self, _: Any, mask: Any = None) -> Any:
        """Return the mask of the pools: valid where any row is; one of steps stays as it is."""
        return mask if mask is None or len(mask.shape) == 2 else _any_of(ops.cast(mask, "bool"), self.pool_size)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return `(batch, steps, ⌈rows ÷ pool_size⌉, channels)`."""
        self._check(tuple(input_shape))
        batch, steps, rows, channels = input_shape
        return batch, steps, -(-(rows or 0) // self.pool_size), channels

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values."""
        return {**super().get_config(), "pool_size": self.pool_size}


@keras.saving.register_keras_serializable(package="nightsift")
class MaskedMaxPooling1D(_MaskedPooling1D):
    """The greatest of the valid rows in each pool of `pool_size` rows.

    Called as `layer(inputs, mask=mask)` with inputs `(batch, steps, rows, channels)` and a mask `(batch, steps, rows)`
    or `(batch, steps)`. Returns `(batch, steps, ⌈rows ÷ pool_size⌉, channels)`, 0 where no row of the pool is valid;
    a pool is valid where any of its rows is. Raises ValueError for a wrong shape.
    """

    def _pooled(self, x: Any, valid: Any) -> Any:
        return ops.max(ops.where(valid, x, -np.inf), axis=0)


@keras.saving.register_keras_serializable(package="nightsift")
class MaskedAveragePooling1D(_MaskedPooling1D):
    """The mean of the valid rows in each pool of `pool_size` rows; otherwise as `MaskedMaxPooling1D`."""

    def _pooled(self, x: Any, valid: Any) -> Any:
        count = ops.maximum(ops.sum(ops.cast(valid, x.dtype), axis=0), 1)
        return ops.sum(ops.where(valid, x, 0), axis=0) / count


def _pools(x: Any, size: int, axis: int) -> list[Any]:
    """Return the first rows of all pools along an axis, then the second ones, …; the last pool is filled with 0."""
    rows = x.shape[axis]
    padding = [(0, 0)] * len(x.shape)
    padding[axis] = (0, -rows % size)
    x = ops.pad(x, padding)
    before = (slice(None),) * axis
    return [x[(*before, slice(place, None, size))] for place in range(size)]


def _any_of(mask: Any, size: int) -> Any:
    """Return for each pool of `size` along the last axis whether any of it is true."""
    return ops.any(ops.stack(_pools(mask, size, axis=len(mask.shape) - 1)), axis=0)


def _shaped(given: Any) -> Any:
    """Return what has a shape as it is, and nested lists as an array."""
    return given if given is None or hasattr(given, "shape") else np.asarray(given)


def _mistake(name: str, given: str, wanted: str, cure: str) -> ValueError:
    """Return the error for a shape: all are one sentence of the same build."""
    return ValueError(f"{name} was given {given}, but it needs {wanted}: {cure}.")


def _fits(given: Shape, wanted: Shape) -> bool:
    """Whether two shapes can be the same, where None is unknown."""
    return len(given) == len(wanted) and all(
        have is None or want is None or have == want for have, want in zip(given, wanted, strict=True)
    )


def _one(name: str, what: str, value: Any) -> int:
    """Return a size that is given as a number or as a sequence of one number."""
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(sizes) != 1 or not isinstance(sizes[0], int | np.integer) or isinstance(sizes[0], bool) or sizes[0] < 1:
        raise _mistake(
            name, f"{what}={value!r}", "one whole number of at least 1", f"set {what} to one number, such as {what}=2"
        )
    return int(sizes[0])


def _check_sizes(name: str, filters: Any, kernel_size: Any, strides: Any, padding: Any, dilation_rate: Any) -> None:
    """Raise ValueError for constructor arguments that cannot be."""
    _one(name, "filters", filters)
    _one(name, "kernel_size", kernel_size)
    if _one(name, "strides", strides) > 1 and _one(name, "dilation_rate", dilation_rate) > 1:
        raise _mistake(
            name, f"strides={strides} and dilation_rate={dilation_rate}", "one of them to be 1", "set strides=1"
        )
    if str(padding).lower() not in {"valid", "same"}:
        raise _mistake(name, f"padding={padding!r}", '"valid" or "same"', 'set padding="same" to keep every row')


def _check_rank(name: str, shape: Shape, wanted: str) -> None:
    if len(shape) == 3:
        raise _mistake(
            name,
            f"inputs of shape {shape}",
            wanted,
            f"cut each sequence into steps of several rows with keras.ops.reshape(inputs, {wanted}); "
            "one row a step will do",
        )
    if len(shape) != 4:
        raise _mistake(name, f"inputs of shape {shape}", wanted, "give the inputs these four axes")


def _unknown(name: str, shape: Shape) -> ValueError:
    return _mistake(
        name,
        f"inputs of shape {shape}",
        "fixed rows and channels",
        "give keras.Input both sizes, padding rows to the longest with a mask; only batch and steps may be None",
    )


def _check_rows(name: str, cell: MaskedConvLSTM1DCell, rows: int | None, channels: int | None, shape: Shape) -> None:
    """Raise ValueError unless the cell can take so many rows and channels."""
    if rows is None or channels is None:
        raise _unknown(name, shape)
    built = (*cell.spatial_dims, cell.input_dim) if cell.built else None
    if built not in {None, (rows, channels)}:
        raise _mistake(
            name,
            f"inputs of shape {shape}",
            f"{built[0]} rows and {built[1]} channels, for which it was built",
            "pass inputs of that size, or make another layer for these",
        )
    if cell.padding == "valid" and rows < cell.reach:
        raise _mistake(
            name,
            f"inputs of shape {shape} with padding='valid' and a kernel that spans {cell.reach} rows",
            f"at least {cell.reach} rows",
            f"set padding='same', or a kernel that spans at most {rows}",
        )


def _check_mask(name: str, mask: Any, wanted: Shape) -> None:
    """Raise ValueError unless a mask is None, `wanted` = (batch, steps, rows), or (batch, steps)."""
    if mask is None:
        return
    shape = tuple(mask.shape)
    # The rows of a mask must be known: those of the outputs are cut from them.
    if not (_fits(shape, wanted[:2]) or (_fits(shape, wanted) and shape[2] is not None)):
        cure = "pass one flag a row that says whether it is real"
        if len(shape) == 4 and _fits(shape[:3], wanted):
            cure += ", such as keras.ops.any(mask, axis=-1)"
        raise _mistake(name, f"a mask of shape {shape}", f"{wanted} or {wanted[:2]}", cure)
    kind = str(mask.dtype)
    if not any(known in kind for known in ("bool", "int", "float")):
        raise _mistake(name, f"a mask of dtype {kind}", "bool", "compare with the value that stands for a real row")


def _named(state: Shape, cell: MaskedConvLSTM1DCell) -> str:
    rows, filters = cell.sizes(state)
    return f"{rows} rows (those of the outputs) and {filters} filters each"
