"""The masked layers in plain NumPy float64, row by row: the definition of what their mask means."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """What of a layer's arguments decides which rows the kernel of the inputs covers."""

    kernel: int
    strides: int = 1
    dilation: int = 1
    padding: str = "same"

    @property
    def reach(self):
        return (self.kernel - 1) * self.dilation + 1

    @property
    def left(self):
        return (self.reach - 1) // 2 if self.padding == "same" else 0

    def rows_out(self, rows):
        return -(-rows // self.strides) if self.padding == "same" else (rows - self.reach) // self.strides + 1

    def covered(self, row):
        """The row of the inputs under each place of the kernel, for a row of the outputs; it may not exist."""
        return [row * self.strides + j * self.dilation - self.left for j in range(self.kernel)]

    def valid(self, mask):
        """Which rows of the outputs are valid, from those of the inputs."""
        if self.padding == "same":
            parts = [mask[r * self.strides : (r + 1) * self.strides] for r in range(self.rows_out(len(mask)))]
            return np.array([part.any() for part in parts])
        return np.array([mask[self.covered(r)].all() for r in range(self.rows_out(len(mask)))])


def masked_conv_lstm(
    weights, inputs, mask, sizes, *, partial=False, initial_state=None, go_backwards=False, activation=np.tanh
):
    """Outputs `(batch, steps, rows, filters)`, their mask `(batch, steps, rows)`, and the last h and c."""
    kernel, recurrent, bias = (weight.astype("float64") for weight in weights)
    batch, steps, rows, _ = inputs.shape
    rows_out, filters = sizes.rows_out(rows), recurrent.shape[1]
    left = (sizes.kernel - 1) // 2
    outputs = np.zeros((batch, steps, rows_out, filters))
    shown = np.zeros((batch, steps, rows_out), bool)
    state = np.zeros((2, batch, rows_out, filters)) if initial_state is None else np.array(initial_state, "float64")
    for b in range(batch):
        for s in range(steps):
            now = steps - 1 - s if go_backwards else s
            h, c = state[:, b].copy()
            shown[b, s] = sizes.valid(mask[b, now])
            for r in np.flatnonzero(shown[b, s]):
                there = [(j, q) for j, q in enumerate(sizes.covered(r)) if 0 <= q < rows and mask[b, now, q]]
                z = sum((inputs[b, now, q].astype("float64") @ kernel[j] for j, q in there), np.zeros(4 * filters))
                z = z * (sizes.kernel / len(there) if partial and there else 1) + bias
                for j in range(sizes.kernel):
                    if 0 <= r + j - left < rows_out:
                        z = z + h[r + j - left] @ recurrent[j]
                i, f, g, o = np.split(z, 4)
                state[1, b, r] = sigmoid(f) * c[r] + sigmoid(i) * activation(g)
                state[0, b, r] = outputs[b, s, r] = sigmoid(o) * activation(state[1, b, r])
    return outputs, shown, state[0], state[1]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def pooled(inputs, mask, size, reduce):
    """Pools `(batch, steps, ⌈rows ÷ size⌉, channels)` of the valid rows, 0 where there are none, and their mask."""
    batch, steps, rows, channels = inputs.shape
    count = -(-rows // size)
    outputs, shown = np.zeros((batch, steps, count, channels)), np.zeros((batch, steps, count), bool)
    for place in np.ndindex(batch, steps, count):
        chosen = np.s_[*place[:2], place[2] * size : (place[2] + 1) * size]
        shown[place] = mask[chosen].any()
        if shown[place]:
            outputs[place] = reduce(inputs[chosen][mask[chosen]], axis=0)
    return outputs, shown
