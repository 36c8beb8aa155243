"""The law of `MaskedConvLSTM1D`: what a mask hides changes nothing that it shows."""

from dataclasses import dataclass, replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.layers import UNROLLED_STEPS, MaskedConvLSTM1D, _fast_recurrence, _recurrence

FILLS = (0.0, 99.0, 1e30, np.nan, np.inf)
property_test = settings(max_examples=10, deadline=None)


@dataclass(frozen=True)
class Case:
    """A layer's sizes, its weights, and inputs `(batch, steps, rows, channels)` with their mask."""

    filters: int
    kernel: int
    weights: list
    inputs: np.ndarray
    mask: np.ndarray


@st.composite
def cases(draw, masks="rows", least_steps=1, most_steps=4):
    batch, steps = draw(st.integers(1, 3)), draw(st.integers(least_steps, most_steps))
    rows, channels = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    filters, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = ((kernel, channels, 4 * filters), (kernel, filters, 4 * filters), (4 * filters,))
    weights = [rng.normal(scale=0.5, size=shape).astype("float32") for shape in shapes]
    shape = (batch, steps, rows) if masks == "rows" else (batch, steps)
    mask = rng.random(shape) < draw(st.sampled_from((0.2, 0.6, 0.9)))
    return Case(filters, kernel, weights, rng.normal(size=(batch, steps, rows, channels)).astype("float32"), mask)


def layer_of(case, cls=MaskedConvLSTM1D, **options):
    options = {"padding": "same", "return_sequences": True, **options}
    layer = cls(case.filters, case.kernel, **options)
    layer.build(case.inputs.shape)
    layer.set_weights(case.weights)
    return layer


def filled(case, value):
    """The case with `value` in all masked places."""
    return replace(case, inputs=np.where(case.mask[..., None], case.inputs, np.float32(value)))


def outputs_of(case, cls=MaskedConvLSTM1D, **options):
    return layer_of(case, cls, **options)(case.inputs, mask=case.mask).numpy()


def run(case, upstream=None, cls=MaskedConvLSTM1D, **options):
    """Outputs, and gradients of Σ outputs·upstream by inputs and weights."""
    layer = layer_of(case, cls, **options)
    x = tf.constant(case.inputs)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, mask=case.mask)
    if upstream is None:
        upstream = np.random.default_rng(0).normal(size=y.shape).astype("float32")
    gradients = tape.gradient(y, [x, *layer.trainable_variables], output_gradients=tf.constant(upstream))
    return y.numpy(), [gradient.numpy() for gradient in gradients]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def oracle(case):
    """Every step and row of the recurrence in plain NumPy float64: the definition of what the mask means."""
    kernel, recurrent, bias = (weight.astype("float64") for weight in case.weights)
    batch, steps, rows, _ = case.inputs.shape
    out = np.zeros((batch, steps, rows, case.filters))
    left = (case.kernel - 1) // 2
    for b in range(batch):
        h, c = np.zeros((rows, case.filters)), np.zeros((rows, case.filters))
        for s in range(steps):
            valid = case.mask[b, s]
            x = np.where(valid[:, None], case.inputs[b, s], 0).astype("float64")
            new_h, new_c = h.copy(), c.copy()
            for r in np.flatnonzero(valid):
                z = bias.copy()
                for j in range(case.kernel):
                    if 0 <= r + j - left < rows:
                        z += x[r + j - left] @ kernel[j] + h[r + j - left] @ recurrent[j]
                i, f, g, o = np.split(z, 4)
                new_c[r] = sigmoid(f) * c[r] + sigmoid(i) * np.tanh(g)
                new_h[r] = out[b, s, r] = sigmoid(o) * np.tanh(new_c[r])
            h, c = new_h, new_c
    return out


@property_test
@given(cases())
def test_equals_the_definition(case):
    """Outputs are those of the row-by-row definition, also for rows that come back after a gap."""
    np.testing.assert_allclose(outputs_of(filled(case, np.nan)), oracle(case), atol=1e-5)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_masked_values_change_nothing(case, fill):
    """What stands in masked places changes no output and no gradient."""
    outputs, gradients = run(case)
    others, other_gradients = run(filled(case, fill))
    np.testing.assert_array_equal(others, outputs)
    for other, gradient in zip(other_gradients, gradients, strict=True):
        np.testing.assert_array_equal(other, gradient)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_gradients_at_masked_places_are_zero(case, fill):
    """Gradients are exactly 0 at masked places, and finite, even where the gradient that arrives there is NaN."""
    arriving = np.where(case.mask[..., None], np.ones((*case.mask.shape, case.filters), "float32"), np.float32(np.nan))
    _, gradients = run(filled(case, fill), arriving)
    assert not gradients[0][~case.mask].any()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@property_test
@given(cases())
def test_outputs_at_masked_places_are_zero(case):
    """Outputs are exactly 0 at masked places."""
    assert not outputs_of(filled(case, np.nan))[~case.mask].any()


@property_test
@given(cases(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.sampled_from(FILLS))
def test_padding_changes_nothing(case, rows, before, after, fill):
    """Appended rows, and steps before and after, change no output and no gradient."""
    outputs, gradients = run(case)
    room = ((0, 0), (before, after), (0, rows))
    inputs = np.pad(case.inputs, (*room, (0, 0)), constant_values=np.float32(fill))
    upstream = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
    padded = replace(case, inputs=inputs, mask=np.pad(case.mask, room))
    others, other_gradients = run(padded, np.pad(upstream, (*room, (0, 0))))
    inside = np.s_[:, before : before + case.mask.shape[1], : case.mask.shape[2]]
    np.testing.assert_allclose(others[inside], outputs, atol=1e-6)
    np.testing.assert_allclose(other_gradients[0][inside], gradients[0], atol=1e-5)
    for other, gradient in zip(other_gradients[1:], gradients[1:], strict=True):
        np.testing.assert_allclose(other, gradient, atol=1e-4, rtol=1e-4)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_sequences_do_not_see_each_other(case, fill):
    """A sequence's output and gradient are the same alone and beside others, whatever those hold."""
    outputs, gradients = run(case)
    upstream = np.random.default_rng(0).normal(size=outputs.shape).astype("float32")
    others = case.inputs.copy()
    others[1:] = fill
    beside = outputs_of(replace(case, inputs=others))
    alone, alone_gradients = run(replace(case, inputs=case.inputs[:1], mask=case.mask[:1]), upstream[:1])
    np.testing.assert_allclose(beside[0], outputs[0], atol=1e-6)
    np.testing.assert_allclose(alone[0], outputs[0], atol=1e-6)
    np.testing.assert_allclose(alone_gradients[0][0], gradients[0][0], atol=1e-5)


@property_test
@given(cases(), st.data())
def test_step_without_valid_row_carries_the_state(case, data):
    """A fully masked step anywhere leaves the last state as it is."""
    place = data.draw(st.integers(0, case.mask.shape[1]))
    longer = replace(
        case,
        inputs=np.insert(case.inputs, place, np.nan, axis=1),
        mask=np.insert(case.mask, place, False, axis=1),
    )
    state = outputs_of(case, return_sequences=False)
    np.testing.assert_allclose(outputs_of(longer, return_sequences=False), state, atol=1e-6)


@property_test
@given(cases())
def test_last_state_is_that_of_each_rows_last_valid_step(case):
    """With `return_sequences=False` a row holds its last valid output, and 0 if it had none."""
    want = np.zeros((case.mask.shape[0], case.mask.shape[2], case.filters))
    outputs = oracle(case)
    for step in range(case.mask.shape[1]):
        want = np.where(case.mask[:, step, :, None], outputs[:, step], want)
    np.testing.assert_allclose(outputs_of(case, return_sequences=False), want, atol=1e-5)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_all_masked_gives_zeros(case, fill):
    """A batch without a valid row gives zeros, outputs and gradients alike."""
    case = filled(replace(case, mask=np.zeros_like(case.mask)), fill)
    outputs, gradients = run(case)
    assert not outputs.any()
    assert not any(gradient.any() for gradient in gradients)


@property_test
@given(cases(), st.booleans())
def test_equals_the_stock_layer_without_a_mask(case, sequences):
    """With nothing masked, outputs and gradients are those of `keras.layers.ConvLSTM1D`; weights load both ways."""
    stock = run(replace(case, mask=None), None, keras.layers.ConvLSTM1D, return_sequences=sequences)
    for mask in (None, np.ones_like(case.mask)):
        ours = run(replace(case, mask=mask), return_sequences=sequences)
        np.testing.assert_allclose(ours[0], stock[0], atol=1e-5)
        for mine, theirs in zip(ours[1], stock[1], strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-4)


@property_test
@given(cases(masks="steps"))
def test_equals_the_stock_layer_under_a_mask_of_steps(case):
    """Under a `(batch, steps)` mask the outputs of valid steps are those of the stock layer."""
    masked = replace(case, inputs=np.where(case.mask[..., None, None], case.inputs, np.float32(np.nan)))
    ours, stock = outputs_of(masked), outputs_of(case, keras.layers.ConvLSTM1D)
    np.testing.assert_allclose(ours[case.mask], stock[case.mask], atol=1e-5)


def test_weights_are_named_and_shaped_as_in_the_stock_layer():
    """Names, shapes, order and first values of the bias are the stock layer's, with and without a bias."""
    for use_bias in (True, False):
        ours = MaskedConvLSTM1D(3, 4, use_bias=use_bias)
        stock = keras.layers.ConvLSTM1D(3, 4, padding="same", use_bias=use_bias)
        for layer in (ours, stock):
            layer.build((None, 5, 6, 2))
        told = [[(weight.name, weight.shape) for weight in layer.weights] for layer in (ours, stock.cell)]
        assert told[0] == told[1]
        stock.set_weights(ours.get_weights())
        ours.set_weights(stock.get_weights())
    np.testing.assert_array_equal(MaskedConvLSTM1D(2, 1)._bias((8,)), [0, 0, 1, 1, 0, 0, 0, 0])


@settings(max_examples=3, deadline=None)
@given(cases(least_steps=UNROLLED_STEPS + 1, most_steps=UNROLLED_STEPS + 2))
def test_long_sequences_are_the_same(case):
    """Past the steps that are written out, the loop gives the definition's outputs and the stock layer's gradients."""
    np.testing.assert_allclose(outputs_of(filled(case, np.nan)), oracle(case), atol=1e-5)
    ours, stock = run(replace(case, mask=None)), run(replace(case, mask=None), None, keras.layers.ConvLSTM1D)
    for mine, theirs in zip(ours[1], stock[1], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-4, rtol=1e-4)


@property_test
@given(cases(), st.booleans())
def test_hand_written_gradient_is_the_backends(case, looped):
    """In float64 the gradient written by hand equals the backend's own, under any mask, also in a loop."""
    rng = np.random.default_rng(0)
    steps = UNROLLED_STEPS + 1 if looped else case.mask.shape[1]
    valid = np.resize(case.mask, (steps, *case.mask.shape[1:]))[..., None]
    drive = rng.normal(size=(*valid.shape[:-1], 4 * case.filters))
    kernel = rng.normal(scale=0.5, size=(case.kernel, case.filters, 4 * case.filters))
    sigmoids = np.repeat([True, True, True, False], case.filters)
    upstream = rng.normal(size=(*valid.shape[:-1], case.filters))

    def gradients(function, halved):
        x, u = tf.constant(drive), tf.constant(kernel)
        with tf.GradientTape() as tape:
            tape.watch([x, u])
            half = tf.where(sigmoids & halved, tf.constant(0.5, tf.float64), 1.0)
            out = function(x * half, u * half, valid)
        return [out, *tape.gradient(out, [x, u], output_gradients=tf.constant(upstream))]

    plain = gradients(lambda *a: _recurrence(*a, keras.activations.tanh, keras.activations.sigmoid), False)
    for ours, backends in zip(gradients(_fast_recurrence, True), plain, strict=True):
        np.testing.assert_allclose(ours, backends, atol=1e-10)


@pytest.mark.parametrize("activations", [("relu", "sigmoid"), ("tanh", "hard_sigmoid"), (None, "tanh")])
def test_other_activations_equal_the_stock_layer(activations):
    """Any pair of activations is honoured, and keeps the law."""
    options = dict(zip(("activation", "recurrent_activation"), activations, strict=True))
    rng = np.random.default_rng(1)
    weights = [rng.normal(scale=0.3, size=shape).astype("float32") for shape in ((3, 2, 8), (3, 2, 8), (8,))]
    case = Case(2, 3, weights, rng.normal(size=(2, 4, 5, 2)).astype("float32"), rng.random((2, 4, 5)) < 0.6)
    ours = run(replace(case, mask=None), **options)
    stock = run(replace(case, mask=None), None, keras.layers.ConvLSTM1D, **options)
    for mine, theirs in zip([ours[0], *ours[1]], [stock[0], *stock[1]], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    np.testing.assert_array_equal(run(filled(case, np.nan), **options)[0], run(case, **options)[0])
    assert not run(filled(case, np.nan), **options)[1][0][~case.mask].any()


def test_runs_in_a_graph_with_any_number_of_steps():
    """A model without a fixed batch and number of steps gives the definition's outputs for short and long input."""
    rng = np.random.default_rng(2)
    inputs, mask = keras.Input((None, 4, 2)), keras.Input((None, 4), dtype="bool")
    layer = MaskedConvLSTM1D(3, 3, return_sequences=True)
    model = keras.Model([inputs, mask], layer(inputs, mask=mask))
    for batch, steps in ((2, 3), (1, 20)):
        x = rng.normal(size=(batch, steps, 4, 2)).astype("float32")
        valid = rng.random((batch, steps, 4)) < 0.6
        want = oracle(Case(3, 3, layer.get_weights(), x, valid))
        np.testing.assert_allclose(model.predict([x, valid], verbose=0), want, atol=1e-5)


def test_compiles_with_xla():
    """Under `jit_compile` outputs and gradients are the same."""
    rng = np.random.default_rng(3)
    weights = [rng.normal(scale=0.3, size=shape).astype("float32") for shape in ((3, 2, 8), (3, 2, 8), (8,))]
    case = Case(2, 3, weights, rng.normal(size=(2, 3, 5, 2)).astype("float32"), rng.random((2, 3, 5)) < 0.6)
    layer = layer_of(case)
    upstream = tf.constant(rng.normal(size=(2, 3, 5, 2)).astype("float32"))

    @tf.function(jit_compile=True)
    def compiled(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, mask=mask)
        return [y, *tape.gradient(y, [x, *layer.trainable_variables], output_gradients=upstream)]

    outputs, gradients = run(case, upstream)
    for xla, eager in zip(compiled(tf.constant(case.inputs), case.mask), [outputs, *gradients], strict=True):
        np.testing.assert_allclose(xla, eager, atol=1e-5)


def test_config_round_trip():
    """A layer rebuilt from its serialised config is the same layer."""
    layer = MaskedConvLSTM1D(3, (5,), activation="relu", bias_initializer="ones", unit_forget_bias=False, name="x")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, MaskedConvLSTM1D)
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("sequences", [True, False])
def test_says_its_output_shape_and_mask(sequences):
    """The declared shape is the real one; the mask goes on with sequences and ends with a last state."""
    layer = MaskedConvLSTM1D(3, 2, return_sequences=sequences)
    mask = np.ones((2, 4, 5), bool)
    out = layer(np.zeros((2, 4, 5, 1), "float32"), mask=mask)
    assert tuple(out.shape) == layer.compute_output_shape((2, 4, 5, 1))
    assert layer.compute_mask(None, mask) is (mask if sequences else None)


def test_mixed_precision_is_kept():
    """Under a float16 policy the outputs are float16 and near the float32 ones."""
    rng = np.random.default_rng(4)
    weights = [rng.normal(scale=0.3, size=shape).astype("float32") for shape in ((3, 2, 8), (3, 2, 8), (8,))]
    case = Case(2, 3, weights, rng.normal(size=(2, 3, 5, 2)).astype("float32"), rng.random((2, 3, 5)) < 0.6)
    out = layer_of(case, dtype="mixed_float16")(case.inputs, mask=case.mask)
    assert out.dtype == tf.float16
    np.testing.assert_allclose(out, oracle(case), atol=5e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedConvLSTM1D(2, 3, strides=2), "strides=2"),
        (lambda: MaskedConvLSTM1D(2, 3, padding="valid"), "padding='valid'"),
        (lambda: MaskedConvLSTM1D(2, (3, 3)), "kernel_size must be one positive number"),
        (lambda: MaskedConvLSTM1D(2, 0), "kernel_size must be one positive number"),
        (lambda: MaskedConvLSTM1D(2, 3)(np.zeros((2, 5, 3))), "expected ndim=4"),
        (lambda: MaskedConvLSTM1D(2, 3).build((None, 5, None, 3)), "fixed number of rows"),
        (lambda: MaskedConvLSTM1D(2, 3)(np.zeros((2, 4, 5, 1)), mask=np.ones((2, 4, 6), bool)), r"\(2, 4, 6\)"),
        (lambda: MaskedConvLSTM1D(2, 3)(np.zeros((2, 4, 5, 1)), mask=np.ones((2,), bool)), "mask of shape"),
    ],
)
def test_mistakes_are_named(make, message):
    """A wrong argument, input or mask raises a ValueError that names what was given."""
    with pytest.raises(ValueError, match=message):
        make()
