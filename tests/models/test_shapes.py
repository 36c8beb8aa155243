"""Mistakes in shapes and sizes: each is told in one sentence before training. Writes docs/shapes.md when run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from models.autoencoder import AutoencoderConfig
from models.buckets import batches
from models.layers import MaskedConvLSTM1D, MaskedConvLSTM1DCell, MaskedMaxPooling1D, RowsRNN

PAGE = Path(__file__).parents[2] / "docs" / "shapes.md"


@dataclass(frozen=True)
class Mistake:
    """A mistake in words, the code that makes it, and the same code mended."""

    what: str
    wrong: str
    cure: str


MISTAKES = [
    Mistake(
        "Inputs of three axes, (batch, steps, channels)",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 50, 3))",
        "MaskedConvLSTM1D(4, 3)(keras.ops.reshape(zeros(2, 50, 3), (2, 5, 10, 3)))",
    ),
    Mistake(
        "Inputs of five axes",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3, 1))",
        "MaskedConvLSTM1D(4, 3)(keras.ops.squeeze(zeros(2, 5, 10, 3, 1), axis=-1))",
    ),
    Mistake(
        "Inputs of three axes to a pooling layer",
        "MaskedMaxPooling1D(2)(zeros(2, 50, 3))",
        "MaskedMaxPooling1D(2)(zeros(2, 5, 10, 3))",
    ),
    Mistake(
        "An unknown number of rows",
        "MaskedConvLSTM1D(4, 3)(keras.Input((None, None, 3)))",
        "MaskedConvLSTM1D(4, 3)(keras.Input((None, 10, 3)))",
    ),
    Mistake(
        "An unknown number of channels",
        "MaskedConvLSTM1D(4, 3)(keras.Input((None, 10, None)))",
        "MaskedConvLSTM1D(4, 3)(keras.Input((None, 10, 3)))",
    ),
    Mistake(
        "A kernel longer than its rows",
        "MaskedConvLSTM1D(4, 5)(zeros(2, 5, 3, 1))",
        'MaskedConvLSTM1D(4, 5, padding="same")(zeros(2, 5, 3, 1))',
    ),
    Mistake(
        "A dilated kernel longer than its rows",
        "MaskedConvLSTM1D(4, 3, dilation_rate=4)(zeros(2, 5, 8, 1))",
        "MaskedConvLSTM1D(4, 3, dilation_rate=3)(zeros(2, 5, 8, 1))",
    ),
    Mistake(
        "Other channels than those that the layer was built for",
        "built(MaskedConvLSTM1D(4, 3), 2, 5, 10, 3)(zeros(2, 5, 10, 1))",
        "built(MaskedConvLSTM1D(4, 3), 2, 5, 10, 1)(zeros(2, 5, 10, 1))",
    ),
    Mistake(
        "Other rows than those that the layer was built for",
        "built(MaskedConvLSTM1D(4, 3), 2, 5, 10, 3)(zeros(2, 5, 8, 3))",
        "built(MaskedConvLSTM1D(4, 3), 2, 5, 8, 3)(zeros(2, 5, 8, 3))",
    ),
    Mistake(
        "An initial state with as many rows as the inputs, not the outputs",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), initial_state=[zeros(2, 10, 4), zeros(2, 10, 4)])",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), initial_state=[zeros(2, 8, 4), zeros(2, 8, 4)])",
    ),
    Mistake(
        "One initial state where there are two",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), initial_state=zeros(2, 8, 4))",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), initial_state=[zeros(2, 8, 4), zeros(2, 8, 4)])",
    ),
    Mistake(
        "A mask of other steps than the inputs",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), mask=ones(2, 6, 10))",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), mask=ones(2, 5, 10))",
    ),
    Mistake(
        "A mask of cells",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), mask=ones(2, 5, 10, 3))",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), mask=keras.ops.any(ones(2, 5, 10, 3), axis=-1))",
    ),
    Mistake(
        "A mask of sequences",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), mask=ones(2))",
        "MaskedConvLSTM1D(4, 3)(zeros(2, 5, 10, 3), mask=ones(2, 5))",
    ),
    Mistake(
        "A mask of words",
        'MaskedConvLSTM1D(4, 3)(zeros(1, 2, 3, 1), mask=[["yes", "no"]])',
        'MaskedConvLSTM1D(4, 3)(zeros(1, 2, 3, 1), mask=np.array([["yes", "no"]]) == "yes")',
    ),
    Mistake(
        "A mask of other rows than those that are pooled",
        "MaskedMaxPooling1D(2)(zeros(2, 5, 10, 3), mask=ones(2, 5, 5))",
        "MaskedMaxPooling1D(2)(zeros(2, 5, 10, 3), mask=ones(2, 5, 10))",
    ),
    Mistake(
        "A mask of rows for an RNN over cells",
        "RowsRNN(MaskedConvLSTM1DCell(4, 3, mask_channel=True))(zeros(2, 5, 10, 3), mask=ones(2, 5, 10))",
        "RowsRNN(MaskedConvLSTM1DCell(4, 3, mask_channel=True))"
        '(keras.ops.concatenate([zeros(2, 5, 10, 3), keras.ops.cast(ones(2, 5, 10, 1), "float32")], axis=-1))',
    ),
    Mistake(
        "A cell whose kernel is longer than its rows",
        "RowsRNN(MaskedConvLSTM1DCell(4, 5))(zeros(2, 5, 3, 1))",
        'RowsRNN(MaskedConvLSTM1DCell(4, 5, padding="same"))(zeros(2, 5, 3, 1))',
    ),
    Mistake(
        "A stateful layer without a fixed batch",
        "MaskedConvLSTM1D(4, 3, stateful=True)(keras.Input((5, 10, 3)))",
        "MaskedConvLSTM1D(4, 3, stateful=True)(keras.Input((5, 10, 3), batch_size=2))",
    ),
    Mistake(
        "A stateful layer with another batch than before",
        "built(MaskedConvLSTM1D(4, 3, stateful=True), 4, 5, 10, 3)(zeros(2, 5, 10, 3))",
        "built(MaskedConvLSTM1D(4, 3, stateful=True), 2, 5, 10, 3)(zeros(2, 5, 10, 3))",
    ),
    Mistake(
        "Strides together with dilation",
        "MaskedConvLSTM1D(4, 3, strides=2, dilation_rate=2)",
        "MaskedConvLSTM1D(4, 3, dilation_rate=2)",
    ),
    Mistake("No filters", "MaskedConvLSTM1D(0, 3)", "MaskedConvLSTM1D(1, 3)"),
    Mistake("A kernel of two axes", "MaskedConvLSTM1D(4, (3, 3))", "MaskedConvLSTM1D(4, (3,))"),
    Mistake("A kernel of a broken number", "MaskedConvLSTM1DCell(4, 2.5)", "MaskedConvLSTM1DCell(4, 2)"),
    Mistake("A step of nothing", "MaskedConvLSTM1D(4, 3, strides=0)", "MaskedConvLSTM1D(4, 3, strides=1)"),
    Mistake("An unknown padding", 'MaskedConvLSTM1D(4, 3, padding="causal")', 'MaskedConvLSTM1D(4, 3, padding="same")'),
    Mistake("A pool of nothing", "MaskedMaxPooling1D(0)", "MaskedMaxPooling1D(1)"),
    Mistake(
        "Strides that a decoder cannot undo, as they are not one for each layer",
        "AutoencoderConfig(8, 8, 1, filters=(8, 4), strides=(2, 2, 2))",
        "AutoencoderConfig(8, 8, 1, filters=(8, 4), strides=(2, 2))",
    ),
    Mistake(
        "Strides that leave fewer rows than the next layer's stride",
        "AutoencoderConfig(8, 4, 1, filters=(8, 4), strides=3)",
        "AutoencoderConfig(8, 9, 1, filters=(8, 4), strides=3)",
    ),
    Mistake(
        "A stride longer than its kernel, past rows that nobody reads",
        "AutoencoderConfig(8, 8, 1, strides=4)",
        "AutoencoderConfig(8, 8, 1, kernel=5, strides=4)",
    ),
    Mistake(
        "Sequences of different length stacked into one array",
        "list(batches([zeros(5, 8, 1), zeros(3, 8, 1), np.zeros((2, 5, 8, 1))]))",
        "list(batches([zeros(5, 8, 1), zeros(3, 8, 1), *np.zeros((2, 5, 8, 1))]))",
    ),
    Mistake(
        "Sequences of other channels in one batch",
        "list(batches([zeros(5, 8, 2), zeros(3, 8, 1)]))",
        "list(batches([zeros(5, 8, 2), zeros(3, 8, 2)]))",
    ),
    Mistake(
        "An empty sequence",
        "list(batches([zeros(5, 8, 1), zeros(0, 8, 1)]))",
        "list(batches([zeros(5, 8, 1)]))",
    ),
]


def built(layer: keras.layers.Layer, *shape: int) -> keras.layers.Layer:
    layer.build(shape)
    return layer


def zeros(*shape: int) -> Any:
    return np.zeros(shape, "float32")


def ones(*shape: int) -> Any:
    return np.ones(shape, bool)


NAMES = {
    "keras": keras, "np": np, "zeros": zeros, "ones": ones, "built": built, "RowsRNN": RowsRNN,
    "MaskedConvLSTM1D": MaskedConvLSTM1D, "MaskedConvLSTM1DCell": MaskedConvLSTM1DCell,
    "MaskedMaxPooling1D": MaskedMaxPooling1D, "AutoencoderConfig": AutoencoderConfig, "batches": batches,
}  # fmt: skip
SYMBOLIC = {
    "zeros": lambda *shape: keras.Input(batch_shape=shape),
    "ones": lambda *shape: keras.Input(batch_shape=shape, dtype="bool"),
}


def message(code: str, **names: Any) -> str:
    """The message of the ValueError that the code raises; layers are numbered anew, as in a program of its own."""
    keras.utils.clear_session(free_memory=False)
    with pytest.raises(ValueError, match=r".") as told:
        eval(code, NAMES | names)
    return str(told.value)


def page() -> str:
    lines = [
        "# Shape mistakes and their cures",
        "",
        "Every mistake is told before training, on symbolic inputs as on real ones. `zeros(…)` and `ones(…)` stand",
        "for data and a mask of that shape, `built(layer, …)` for a layer that has seen inputs of that shape. The",
        "tests run both columns of code, and write this page: `python -m tests.models.test_shapes`.",
        "",
        "| mistake | message | cure |",
        "|---|---|---|",
    ]
    rows = [(one.what, one.wrong, message(one.wrong), one.cure) for one in MISTAKES]
    lines += [f"| {what}: `{wrong}` | {told.replace('|', '&#124;')} | `{cure}` |" for what, wrong, told, cure in rows]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_told_in_one_sentence(mistake):
    """The message names who was given what, what is needed and what to change, and the mended code runs."""
    told = message(mistake.wrong)
    assert re.fullmatch(r"\S+ was given .+, but it needs .+: .+\.", told), told
    assert ". " not in told
    eval(mistake.cure, NAMES)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_told_before_training(mistake):
    """Symbolic inputs raise the same message as real ones."""
    assert message(mistake.wrong, **SYMBOLIC) == message(mistake.wrong)


def test_the_page_is_what_the_tests_see():
    """docs/shapes.md is what is written from the mistakes above."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.models.test_shapes` to write it"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
