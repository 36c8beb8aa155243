"""The recurrence of the masked convolutional LSTM: pure functions on tensors, with a gradient written by hand.

The stock layer runs eight small convolutions a step, one for each gate of input and state. Here one convolution over
input and state together gives all gates of a step, so that nothing but the states is written between steps, and one
tanh serves all four gates.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

# Up to so many steps `recur` is written out: XLA finds no gradient through TensorFlow's scan.
UNROLLED_STEPS = 32


def is_fast(activation: Any, recurrent_activation: Any) -> bool:
    """Whether one tanh can serve all gates."""
    return activation is keras.activations.tanh and recurrent_activation is keras.activations.sigmoid


def fused(weight: Any, halved: bool) -> Any:
    """Reorder the gates of the last axis from i, f, c, o to i, f, o, c; halve i, f, o where one tanh serves all."""
    i, f, c, o = ops.split(weight, 4, axis=-1)
    sigmoids = ops.concatenate([i, f, o], axis=-1)
    return ops.concatenate([0.5 * sigmoids if halved else sigmoids, c], axis=-1)


def convolve(x: Any, kernel: Any, padding: tuple[int, int], strides: int = 1, dilation: int = 1) -> Any:
    """Convolve `(n, rows, in)` with `(size, in, out)` after padding with so many rows of zeros left and right."""
    if any(padding):
        x = ops.pad(x, [(0, 0), padding, (0, 0)])
    return ops.conv(x, kernel, strides=strides, padding="valid", dilation_rate=dilation)


def recur(
    x: Any,
    drive: Any,
    kernel: Any,
    valid: Any,
    h: Any,
    c: Any,
    activation: Any,
    recurrent_activation: Any,
    drop: Sequence[Any] | None = None,
) -> tuple[Any, Any]:
    """Return the states h after every step `(steps, batch, rows, filters)`, and the last c `(batch, rows, filters)`.

    Gates are i, f, o, c. x `(steps, batch, rows, channels)` is what the kernel `(size, channels + filters, 4·filters)`
    reads beside h at each step, perhaps of no channels; drive is a bias `(4·filters,)` or what else is added to the
    gates, `(steps, batch, rows, 4·filters)`; valid is `(steps, batch, rows, 1)`, or None where nothing is masked;
    h and c `(batch, rows, filters)` are the state before the first step; drop are four masks like h, one a gate.
    The gradient is the backend's own.
    """
    filters, rows = h.shape[-1], h.shape[-2]

    def step(carry: tuple[Any, Any], place: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        h, c = carry
        if drop is None:
            z = _pre(x, drive, kernel, h, rows, place)
        else:
            parts = zip(drop, ops.split(kernel, 4, axis=-1), strict=True)
            seen = [_pre(x, None, part, h * ops.reshape(mask, (-1, filters)), rows, place) for mask, part in parts]
            z = ops.concatenate(seen, axis=-1) + _at(drive, place)
        i, f, o = ops.split(recurrent_activation(z[:, : 3 * filters]), 3, axis=-1)
        new_c = f * c + i * activation(z[:, 3 * filters :])
        new = _kept(valid, place, (o * activation(new_c), new_c), (h, c))
        return new, new  # TensorFlow's scan wants what is stacked to look like the carry

    carry = (ops.reshape(h, (-1, filters)), ops.reshape(c, (-1, filters)))
    if x.shape[0] is not None and x.shape[0] <= UNROLLED_STEPS:
        states = []
        for place in range(x.shape[0]):
            carry, _ = step(carry, place)
            states.append(carry[0])
        return _by_rows(ops.stack(states), rows), _by_rows(carry[1], rows)
    carry, (stacked, _) = ops.scan(step, carry, ops.arange(ops.shape(x)[0]))
    return _by_rows(stacked, rows), _by_rows(carry[1], rows)


def recur_fast(
    x: Any, drive: Any, kernel: Any, valid: Any, h: Any, c: Any, *, remember: bool, with_c: bool
) -> tuple[Any, Any]:
    """Return what `recur` returns for tanh and sigmoid without drop, with a gradient written by hand.

    The gates i, f, o are halved (see `fused`). Without `remember` the gates are not kept for the gradient, which
    computes them again: right where there will hardly be one. Without `with_c` the last c is None.

    sigmoid(z) = ½·tanh(z/2) + ½, so with z halved in i, f, o one t = tanh(z) over all gates gives i, f, o = ½·t + ½ and
    g = t. Where a row is valid, c' = f·c + i·g, u = tanh(c'), h' = o·u. Backwards, with dh, dc the gradients of the
    state after a step and d tanh = 1 − tanh²:

        dc += dh·o·(1 − u²)
        dz  = (½·dc·g, ½·dc·c, ½·dh·u, dc·i)·(1 − t²)
        dx, dh = convolutionᵀ(dz),    dc = dc·f,    dkernel += columns(x, h)ᵀ·dz

    and where it is masked, dz = 0 and dh, dc pass by. The transposed convolution is one with the flipped kernel;
    the kernel's gradient is summed within the loop, while all that it needs is still in the cache.
    """
    filters, rows, channels = h.shape[-1], h.shape[-2], x.shape[-1]
    driven = len(drive.shape) == 4
    exact = "float32" if keras.backend.standardize_dtype(x.dtype) in {"float16", "bfloat16"} else x.dtype

    @ops.custom_gradient
    def run(x: Any, drive: Any, kernel: Any, h: Any, c: Any, *shown: Any) -> Any:
        valid = shown[0] > 0 if shown else None
        start = (ops.reshape(h, (-1, filters)), ops.reshape(c, (-1, filters)))
        places = ops.arange(ops.shape(x)[0])
        wide = ops.tile(ops.zeros_like(start[0]), (1, 4))

        def forward(carry: tuple[Any, ...], place: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            h, c = carry[:2]
            new_h, new_c, t = _advanced(_pre(x, drive, kernel, h, rows, place), c)
            carry = _kept(valid, place, (new_h, new_c), (h, c))
            if remember:
                carry = (*carry, t)
            return carry, carry

        (_, last_c, *_), (hs, cs, *ts) = ops.scan(forward, (*start, wide) if remember else start, places)

        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, ...]:
            dy = args[0] if upstream is None else upstream
            flipped = ops.transpose(ops.flip(kernel, axis=0), (0, 2, 1))

            def backward(carry: tuple[Any, ...], place: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
                dh, dc, _, dkernel, ddrive = carry
                h_before, c_before = (
                    ops.where(place > 0, _at(after, ops.maximum(place - 1, 0)), first)
                    for after, first in zip((hs, cs), start, strict=True)
                )
                t = _at(ts[0], place) if remember else _tanh(_pre(x, drive, kernel, h_before, rows, place))
                dh = dh + _at(dy, place)
                dz, dc_before = _gates_back(t, _at(cs, place), c_before, dh, dc)
                if valid is not None:
                    keep = _at(valid, place)
                    dz = ops.where(keep, dz, 0)
                seen = ops.concatenate([x[place], _by_rows(h_before, rows)], axis=-1)
                dkernel = dkernel + ops.cast(ops.matmul(ops.transpose(_columns(seen, kernel.shape[0])), dz), exact)
                dseen = _convolve_back(_by_rows(dz, rows), flipped)
                dh_before = ops.reshape(dseen[..., channels:], (-1, filters))
                if valid is not None:
                    dh_before, dc_before = dh_before + ops.where(keep, 0, dh), ops.where(keep, dc_before, dc)
                ddrive = dz if driven else ddrive + ops.cast(ops.sum(dz, axis=0), exact)
                dx = dseen[..., :channels]
                # What nobody reads step by step is not kept for every step; it must look like the carry all the same.
                kept = (zero[0], zero[1], dx, zero[3], ddrive if driven else zero[4])
                return (dh_before, dc_before, zero[2], dkernel, ddrive), kept

            if with_c:
                dy, dc = dy[:-1], ops.reshape(dy[-1], (-1, filters))
            else:
                dc = ops.zeros_like(start[1])
            zero = (
                ops.zeros_like(start[0]),
                dc,
                ops.zeros_like(x[0]),
                ops.cast(ops.zeros_like(ops.reshape(kernel, (-1, 4 * filters))), exact),
                wide if driven else ops.cast(ops.zeros_like(drive), exact),
            )
            (dh, dc, _, dkernel, ddrive), (_, _, dx, _, ddrives) = ops.scan(backward, zero, places, reverse=True)
            return (
                dx,
                _by_rows(ddrives, rows) if driven else ops.cast(ddrive, drive.dtype),
                ops.cast(ops.reshape(dkernel, kernel.shape), kernel.dtype),
                _by_rows(dh, rows),
                _by_rows(dc, rows),
                *(ops.zeros_like(one) for one in shown),
            )

        # One tensor out, because Torch hands on the gradient of one only.
        states = ops.concatenate([hs, last_c[None]], axis=0) if with_c else hs
        return _by_rows(states, rows), gradient

    # The mask goes in as numbers: JAX allows neither tensors from outside nor flags here.
    shown = [] if valid is None else [ops.cast(valid, x.dtype)]
    states = run(x, drive, kernel, h, c, *shown)
    return (states[:-1], states[-1]) if with_c else (states, None)


def _pre(x: Any, drive: Any, kernel: Any, h: Any, rows: int, place: Any) -> Any:
    """Return z `(batch·rows, 4·filters)` of one step, before any activation."""
    seen = ops.concatenate([x[place], _by_rows(h, rows)], axis=-1)
    z = ops.reshape(ops.conv(seen, kernel, padding="same"), (-1, kernel.shape[-1]))
    return z if drive is None else z + _at(drive, place)


def _advanced(z: Any, c: Any) -> tuple[Any, Any, Any]:
    """Return h and c after a step, and tanh(z), from z with i, f, o halved."""
    t = _tanh(z)
    i, f, o, g = _gates(t)
    c = f * c + i * g
    return o * _tanh(c), c, t


def _kept(valid: Any, place: Any, new: tuple[Any, ...], old: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the new states where a row is valid at a step, the old ones where it is masked."""
    if valid is None:
        return new
    keep = _at(valid, place)
    return tuple(ops.where(keep, after, before) for after, before in zip(new, old, strict=True))


def _tanh(x: Any) -> Any:
    """Return tanh(x) in the dtype of x, where Keras on JAX returns float32 for float64."""
    return ops.cast(ops.tanh(x), x.dtype)


def _gates_back(t: Any, c: Any, c_before: Any, dh: Any, dc: Any) -> tuple[Any, Any]:
    """Return dz and the gradient of c before the step, from dh and dc after it."""
    i, f, o, g = _gates(t)
    u = _tanh(c)
    dc = dc + dh * o * (1 - u * u)
    dz = ops.concatenate([0.5 * dc * g, 0.5 * dc * c_before, 0.5 * dh * u, dc * i], axis=-1) * (1 - t * t)
    return dz, dc * f


def _gates(t: Any) -> tuple[Any, Any, Any, Any]:
    filters = t.shape[-1] // 4
    i, f, o = ops.split(0.5 * t[:, : 3 * filters] + 0.5, 3, axis=-1)
    return i, f, o, t[:, 3 * filters :]


def _at(each: Any, place: Any) -> Any:
    """Return one step `(batch·rows, n)` of `(steps, batch, rows, n)` or `(steps, batch·rows, n)`; a bias as it is."""
    if len(each.shape) == 1:
        return each
    now = each[place]
    return ops.reshape(now, (-1, each.shape[-1])) if len(each.shape) == 4 else now


def _by_rows(flat: Any, rows: int) -> Any:
    """Return `(…, batch·rows, n)` as `(…, batch, rows, n)`."""
    if len(flat.shape) == 2:
        return ops.reshape(flat, (-1, rows, flat.shape[-1]))
    return ops.reshape(flat, (ops.shape(flat)[0], -1, rows, flat.shape[-1]))


def _convolve_back(dz: Any, flipped: Any) -> Any:
    """Return the gradient of what a "same" convolution read, from the flipped kernel `(size, out, in)`."""
    size = flipped.shape[0]
    if size % 2:
        return ops.conv(dz, flipped, padding="same")
    return convolve(dz, flipped, (size // 2, (size - 1) // 2))


def _columns(seen: Any, size: int) -> Any:
    """Return what the kernel sees for every row, `(batch·rows, size·in)`, from `(batch, rows, in)`."""
    rows, left = seen.shape[1], (size - 1) // 2
    padded = ops.pad(seen, [(0, 0), (left, size - 1 - left), (0, 0)])
    columns = ops.concatenate([padded[:, j : j + rows] for j in range(size)], axis=-1)
    return ops.reshape(columns, (-1, size * seen.shape[-1]))
