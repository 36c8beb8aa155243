"""The law of the masked layers: what a mask hides changes nothing that it shows. Runs on any Keras backend."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import ops

from models.layers import (
    MaskedAveragePooling1D,
    MaskedConvLSTM1D,
    MaskedConvLSTM1DCell,
    MaskedMaxPooling1D,
    RowsRNN,
)
from tests.models.gradients import gradients
from tests.models.oracle import Sizes, masked_conv_lstm, pooled

STOCK = keras.layers.ConvLSTM1D
JAX = keras.backend.backend() == "jax"  # it compiles each new shape, so it gets fewer of them
FILLS = (0.0, 99.0, 1e30, np.nan, np.inf)
property_test = settings(
    max_examples=5 if JAX else 15, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
stock_test = settings(property_test, max_examples=4 if JAX else 8)  # the stock layer takes its time


@dataclass(frozen=True)
class Case:
    """A layer's arguments and weights, inputs `(batch, steps, rows, channels)`, mask and initial states."""

    filters: int
    sizes: Sizes
    weights: list
    inputs: np.ndarray
    mask: np.ndarray | None
    states: list = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self):
        """The mask of the outputs, in the order of the outputs."""
        shown = np.array([[self.sizes.valid(step) for step in sequence] for sequence in self.mask])
        return shown[:, ::-1] if self.options.get("go_backwards") else shown


@st.composite
def cases(draw, steps=(1, 4), strides=True, options=None, states=False, dtype="float32"):
    """Cases of any sizes; `strides=False` keeps to those for which the stock layer has the same padding."""
    kernel, stride = draw(st.integers(1, 5)), draw(st.sampled_from((1, 1, 2, 3))) if strides else 1
    dilation = 1 if stride > 1 else draw(st.integers(1, 2))
    sizes = Sizes(kernel, stride, dilation, draw(st.sampled_from(("same", "valid"))))
    least = sizes.reach if sizes.padding == "valid" else 1
    rows = draw(st.integers(least, least + 5))
    batch, steps, channels, filters = (
        draw(st.integers(*bounds)) for bounds in ((1, 3), steps, (1, 3), (1, 3))
    )  # fmt: skip
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shapes = ((kernel, channels, 4 * filters), (kernel, filters, 4 * filters), (4 * filters,))
    weights = [rng.normal(scale=0.5, size=shape).astype(dtype) for shape in shapes]
    mask = rng.random((batch, steps, rows)) < draw(st.sampled_from((0.2, 0.6, 0.9)))
    state = rng.normal(scale=0.5, size=(2, batch, sizes.rows_out(rows), filters)).astype(dtype)
    if options is None:
        options = {name: draw(st.booleans()) for name in ("partial", "go_backwards")}
    return Case(
        filters, sizes, weights, rng.normal(size=(batch, steps, rows, channels)).astype(dtype), mask,
        list(state) if states and draw(st.booleans()) else [], {**options, "dtype": dtype},
    )  # fmt: skip


def some_case(seed=0, batch=2, steps=4, rows=5, channels=2, filters=2, kernel=3, **options):
    rng = np.random.default_rng(seed)
    shapes = ((kernel, channels, 4 * filters), (kernel, filters, 4 * filters), (4 * filters,))
    weights = [rng.normal(scale=0.3, size=shape).astype("float32") for shape in shapes]
    inputs = rng.normal(size=(batch, steps, rows, channels)).astype("float32")
    return Case(filters, Sizes(kernel), weights, inputs, rng.random((batch, steps, rows)) < 0.6, options=options)


def layer_of(case, cls=MaskedConvLSTM1D, **options):
    sizes = case.sizes
    options = {
        "strides": sizes.strides, "dilation_rate": sizes.dilation, "padding": sizes.padding, "return_sequences": True,
        "kernel_initializer": "zeros", "recurrent_initializer": "zeros",  # soon replaced, and quick to make
        **case.options, **options,
    }  # fmt: skip
    layer = cls(case.filters, sizes.kernel, **options)
    layer.build(case.inputs.shape)
    layer.set_weights(case.weights)
    return layer


def told(x):
    return ops.convert_to_numpy(x)


def outputs_of(case, cls=MaskedConvLSTM1D, **options):
    return told(layer_of(case, cls, **options)(case.inputs, mask=case.mask, initial_state=case.states or None))


def states_of(case):
    return [told(one) for one in layer_of(case, return_state=True)(case.inputs, mask=case.mask)[1:]]


def some(shape):
    return np.random.default_rng(0).normal(size=shape)


def run(case, upstream=some, cls=MaskedConvLSTM1D, **options):
    """Outputs, and gradients of Σ outputs·upstream by inputs, initial states and weights."""
    layer = layer_of(case, cls, **options)

    def call(x, *states):
        return layer(x, mask=case.mask, initial_state=list(states) or None)

    return gradients(call, [case.inputs, *case.states], upstream, layer)


def filled(case, value):
    """The case with `value` in all masked places."""
    return replace(case, inputs=np.where(case.mask[..., None], case.inputs, np.asarray(value, case.inputs.dtype)))


def oracle(case):
    options = {name: case.options.get(name, False) for name in ("partial", "go_backwards")}
    return masked_conv_lstm(
        case.weights, case.inputs, case.mask, case.sizes, initial_state=case.states or None, **options
    )


def assert_near(ours, theirs, **tolerance):
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, **tolerance)


@property_test
@given(cases(states=True) | cases(states=True, dtype="float64"))
def test_equals_the_definition(case):
    """Outputs, their mask and the last states are those of the row-by-row definition, also for rows that come back."""
    layer = layer_of(case, return_state=True)
    got = [told(one) for one in layer(filled(case, np.nan).inputs, mask=case.mask, initial_state=case.states or None)]
    outputs, shown, h, c = oracle(case)
    tolerance = 1e-5 if case.inputs.dtype == "float32" or JAX else 1e-10  # Keras' tanh on JAX is of 32 bits
    assert_near(got, [outputs, h, c], atol=tolerance)
    assert not got[0][~shown].any()
    np.testing.assert_array_equal(told(layer.compute_mask(None, ops.convert_to_tensor(case.mask))[0]), shown)
    last = layer_of(case, return_sequences=False)(case.inputs, mask=case.mask, initial_state=case.states or None)
    np.testing.assert_allclose(told(last), h, atol=tolerance)


@property_test
@given(cases(states=True, dtype="float64"), st.integers(0, 2**32))
def test_gradients_are_those_of_the_definition(case, seed):
    """Along a random direction of inputs, states and weights the outputs change as the gradients say, in float64."""
    _, found = run(case)
    assert not found[0][~case.mask].any()
    rng = np.random.default_rng(seed)
    directions = [rng.normal(size=gradient.shape) for gradient in found]

    def moved(by):
        x, *others = (part + by * way for part, way in zip(
            [case.inputs, *case.states, *case.weights], directions, strict=True))  # fmt: skip
        there = len(case.states)
        outputs = oracle(replace(case, inputs=x, states=others[:there], weights=others[there:]))[0]
        return (outputs * some(outputs.shape)).sum()

    want = (moved(1e-5) - moved(-1e-5)) / 2e-5
    got = sum((gradient * way).sum() for gradient, way in zip(found, directions, strict=True))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 if JAX else 1e-7)


@property_test
@given(cases(states=True), st.sampled_from(FILLS))
def test_masked_values_change_nothing(case, fill):
    """What stands in masked places changes no output and no gradient."""
    (outputs, found), (others, other_found) = run(case), run(filled(case, fill))
    for mine, other in zip([outputs, *found], [others, *other_found], strict=True):
        np.testing.assert_array_equal(other, mine)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_gradients_at_masked_places_are_zero(case, fill):
    """Gradients are exactly 0 at masked places, and finite, even where the gradient that arrives there is NaN."""
    _, found = run(filled(case, fill), lambda shape: np.where(case.shown[..., None], np.ones(shape), np.nan))
    assert not found[0][~case.mask].any()
    assert all(np.isfinite(gradient).all() for gradient in found)


@property_test
@given(cases(), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3), st.sampled_from(FILLS))
def test_padding_changes_nothing(case, rows, before, after, fill):
    """Appended rows, and steps before and after, change no output and no gradient, whatever strides and padding."""
    outputs, found = run(case)
    room = ((0, 0), (before, after), (0, rows))
    inputs = np.pad(case.inputs, (*room, (0, 0)), constant_values=np.float32(fill))
    padded = replace(case, inputs=inputs, mask=np.pad(case.mask, room))
    first = after if case.options["go_backwards"] else before
    inside = np.s_[:, first : first + outputs.shape[1], : outputs.shape[2]]

    def upstream(shape):
        arriving = some(shape)
        arriving[inside] = some(outputs.shape)
        return arriving

    others, other_found = run(padded, upstream)
    np.testing.assert_allclose(others[inside], outputs, atol=1e-6)
    given_steps = np.s_[:, before : before + case.mask.shape[1], : case.mask.shape[2]]
    np.testing.assert_allclose(other_found[0][given_steps], found[0], atol=1e-5)
    assert_near(other_found[1:], found[1:], atol=1e-4, rtol=1e-4)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_sequences_do_not_see_each_other(case, fill):
    """A sequence's output and gradient are the same alone and beside others, whatever those hold."""
    outputs, found = run(case)
    others = case.inputs.copy()
    others[1:] = fill
    beside = outputs_of(replace(case, inputs=others))
    alone, alone_found = run(
        replace(case, inputs=case.inputs[:1], mask=case.mask[:1]), lambda shape: some(outputs.shape)[:1]
    )
    np.testing.assert_allclose(beside[0], outputs[0], atol=1e-6)
    np.testing.assert_allclose(alone[0], outputs[0], atol=1e-6)
    np.testing.assert_allclose(alone_found[0][0], found[0][0], atol=1e-5)


@property_test
@given(cases(), st.data())
def test_step_without_valid_row_carries_the_state(case, data):
    """A fully masked step anywhere leaves the last states as they are."""
    place = data.draw(st.integers(0, case.mask.shape[1]))
    longer = replace(
        case,
        inputs=np.insert(case.inputs, place, np.nan, axis=1),
        mask=np.insert(case.mask, place, False, axis=1),
    )
    assert_near(states_of(longer), states_of(case), atol=1e-6)


@property_test
@given(cases(), st.sampled_from(FILLS))
def test_all_masked_gives_zeros(case, fill):
    """A batch without a valid row gives zeros, outputs, states and gradients alike."""
    case = filled(replace(case, mask=np.zeros_like(case.mask)), fill)
    outputs, found = run(case)
    assert not any(part.any() for part in [outputs, *found, *states_of(case)])


@stock_test
@given(cases(steps=(1, 3), strides=False, options={}, states=True), st.booleans(), st.booleans())
def test_equals_the_stock_layer_without_a_mask(case, sequences, backwards):
    """With nothing masked, outputs and gradients are those of `keras.layers.ConvLSTM1D`; weights load both ways."""
    options = {"return_sequences": sequences, "go_backwards": backwards}
    outputs, found = run(replace(case, mask=None), some, STOCK, **options)
    for mask in (None, np.ones_like(case.mask)):
        ours, our_found = run(replace(case, mask=mask), **options)
        np.testing.assert_allclose(ours, outputs, atol=1e-5)
        assert_near(our_found, found, atol=1e-4, rtol=1e-4)


def case_of_steps(case, mask):
    """The case with a `(batch, steps)` mask told row by row."""
    return replace(case, mask=np.repeat(mask[..., None], case.inputs.shape[2], axis=2))


@stock_test
@given(cases(strides=False, options={}))
def test_equals_the_stock_layer_under_a_mask_of_steps(case):
    """Under a `(batch, steps)` mask the outputs of valid steps are those of the stock layer, and it stays as it is."""
    mask = case.mask[..., 0]
    masked = replace(case, inputs=np.where(mask[..., None, None], case.inputs, np.float32(np.nan)), mask=mask)
    ours = outputs_of(masked)
    # On JAX Keras' own layer fails under any mask of steps (3.15), so there the definition stands for it.
    stock = oracle(case_of_steps(case, mask))[0] if JAX else outputs_of(replace(case, mask=mask), STOCK)
    np.testing.assert_allclose(ours[mask], stock[mask], atol=1e-5)
    assert not ours[~mask].any()
    assert layer_of(case).compute_mask(None, mask) is mask


def test_a_mask_of_steps_hides_all_rows_of_a_step():
    """A `(batch, steps)` mask means the same as one of rows, whatever the strides, padding and direction."""
    steps = np.random.default_rng(0).random((3, 5)) < 0.6
    for options in ({"strides": 2, "padding": "same"}, {"padding": "valid"}, {"go_backwards": True, "partial": True}):
        case = replace(some_case(batch=3, steps=5, rows=7, **options), mask=np.repeat(steps[..., None], 7, axis=2))
        layer, of_steps = layer_of(case), replace(case, mask=steps)
        np.testing.assert_array_equal(outputs_of(of_steps), outputs_of(case))
        whole = told(layer.compute_mask(None, ops.convert_to_tensor(case.mask)))
        short = told(layer.compute_mask(None, ops.convert_to_tensor(steps)))
        np.testing.assert_array_equal(whole, np.repeat(short[..., None], whole.shape[2], axis=2))


def test_a_mask_may_be_numbers_or_nested_lists():
    """Numbers are 0 where masked; the outputs are those of the same mask as bool, and carry it as bool."""
    case = some_case()
    want = outputs_of(case)
    for mask in (case.mask.astype("int32"), case.mask.astype("float64") * 0.5, case.mask.tolist()):
        outputs = layer_of(case)(case.inputs, mask=mask)
        np.testing.assert_array_equal(told(outputs), want)
        np.testing.assert_array_equal(told(outputs._keras_mask), case.mask)


def test_weights_are_named_and_shaped_as_in_the_stock_layer():
    """Names, shapes, order and first values of the bias are the stock layer's, with and without a bias."""
    for options in ({}, {"use_bias": False}, {"unit_forget_bias": False, "bias_initializer": "ones"}):
        layers = [cls(3, 4, padding="same", **options) for cls in (MaskedConvLSTM1D, STOCK)]
        for layer in layers:
            layer.build((None, 5, 6, 2))
        ours, stock = layers
        described = [[(weight.path, weight.shape) for weight in layer.weights] for layer in layers]
        assert [(path.split("/")[1:], shape) for path, shape in described[0]] == [
            (path.split("/")[1:], shape) for path, shape in described[1]
        ]
        for mine, theirs in zip(ours.weights[2:], stock.weights[2:], strict=True):
            np.testing.assert_array_equal(told(mine), told(theirs))
        stock.set_weights(ours.get_weights())
        ours.set_weights(stock.get_weights())


def test_trains_as_the_stock_layer_does():
    """From the same weights, 20 steps of training on unmasked data give the stock layer's loss curve to 1e-4."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 3, 6, 2)).astype("float32")
    y = rng.normal(size=(8, 3, 6, 3)).astype("float32")
    curves, weights = [], None
    for cls in (STOCK, MaskedConvLSTM1D):
        layers = [cls(units, 3, padding="same", return_sequences=True) for units in (4, 3)]
        model = keras.Sequential([keras.Input((3, 6, 2)), *layers])
        weights = model.get_weights() if weights is None else weights
        model.set_weights(weights)
        model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=JAX)
        curves.append([model.train_on_batch(x, y) for _ in range(20)])
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-4)
    assert curves[0][-1] < curves[0][0] - 0.01


def test_appended_rows_change_nothing_under_strides():
    """The padding on the left does not depend on the number of rows, which decides the padding of the stock layer."""
    x, mask = some((1, 2, 9, 1)).astype("float32"), np.ones((1, 2, 9), bool)
    mask[:, :, 8] = False
    for kernel, strides in ((3, 2), (4, 2), (5, 3)):
        short = MaskedConvLSTM1D(2, kernel, strides=strides, padding="same")
        long = MaskedConvLSTM1D(2, kernel, strides=strides, padding="same")
        want = told(short(x[:, :, :8], mask=mask[:, :, :8]))
        long.build(x.shape)
        long.set_weights(short.get_weights())
        np.testing.assert_allclose(told(long(x, mask=mask))[:, : want.shape[1]], want, atol=1e-6)


@settings(property_test, max_examples=2)
@given(cases(steps=(33, 34), options={"go_backwards": False}, dtype="float64"))
def test_long_sequences_are_the_same(case):
    """Many steps give the definition's outputs, and gradients that are unchanged by NaN in masked places."""
    outputs, found = run(filled(case, np.nan))
    np.testing.assert_allclose(outputs, oracle(case)[0], atol=1e-5 if JAX else 1e-10)
    assert_near(found, run(case)[1], rtol=0, atol=0)


@pytest.mark.parametrize("activations", [("relu", "sigmoid"), ("tanh", "hard_sigmoid"), (None, "tanh")])
def test_other_activations_equal_the_stock_layer(activations):
    """Any pair of activations is honoured, and keeps the law."""
    options = dict(zip(("activation", "recurrent_activation"), activations, strict=True))
    case = some_case(seed=1, **options)
    (ours, found), (stock, stock_found) = run(replace(case, mask=None)), run(replace(case, mask=None), some, STOCK)
    assert_near([ours, *found], [stock, *stock_found], atol=1e-5)
    outputs, found = run(filled(case, np.nan))
    np.testing.assert_array_equal(outputs, run(case)[0])
    assert not found[0][~case.mask].any()


def test_dropout_is_the_stock_layers():
    """With the same seed the same units are dropped as in the stock layer, at every step alike; none in inference."""
    for options in ({"dropout": 0.4}, {"recurrent_dropout": 0.4}, {"dropout": 0.3, "recurrent_dropout": 0.3}):
        case = replace(some_case(rows=6, channels=3, filters=3, seed=2), mask=None)
        plain = outputs_of(case)
        results = []
        for cls in (MaskedConvLSTM1D, STOCK):
            layer = layer_of(case, cls, seed=7, **options)
            results.append(told(layer(case.inputs, training=True)))
            np.testing.assert_allclose(told(layer(case.inputs, training=False)), plain, atol=1e-5)
        np.testing.assert_allclose(results[0], results[1], atol=1e-5)
        assert np.abs(results[0] - plain).max() > 1e-3


def test_dropout_keeps_the_law():
    """Under dropout, too, NaN in masked places reaches no output and no gradient."""
    case = filled(some_case(dropout=0.3, recurrent_dropout=0.3, seed=3), np.nan)
    layer = layer_of(case)
    outputs, found = gradients(lambda x: layer(x, mask=case.mask, training=True), [case.inputs], some, layer)
    assert np.isfinite(outputs).all()
    assert all(np.isfinite(gradient).all() for gradient in found)
    assert not found[0][~case.mask].any()


def test_regularizers_and_constraints_are_kept():
    """Weights are regularized and constrained as in the stock layer, and the activity of outputs is too."""
    options = {f"{part}_regularizer": "l2" for part in ("kernel", "recurrent", "bias", "activity")}
    options |= {f"{part}_constraint": "non_neg" for part in ("kernel", "recurrent", "bias")}
    case = replace(some_case(**options), mask=None)
    losses = []
    for cls in (MaskedConvLSTM1D, STOCK):
        layer = layer_of(case, cls)
        layer(case.inputs)
        losses.append(sorted(float(loss) for loss in layer.losses))
        assert all(isinstance(weight.constraint, keras.constraints.NonNeg) for weight in layer.weights)
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_runs_in_a_model_with_any_batch_and_number_of_steps():
    """A model without a fixed batch and number of steps gives the definition's outputs for short and long input."""
    rng = np.random.default_rng(2)
    inputs, mask = keras.Input((None, 4, 2)), keras.Input((None, 4), dtype="bool")
    layer = MaskedConvLSTM1D(3, 3, padding="same", return_sequences=True, strides=2, partial=True)
    model = keras.Model([inputs, mask], layer(inputs, mask=mask))
    assert model.output_shape == (None, None, 2, 3)
    for batch, steps in ((2, 3), (1, 20)):
        x = rng.normal(size=(batch, steps, 4, 2)).astype("float32")
        valid = rng.random((batch, steps, 4)) < 0.6
        want, *_ = masked_conv_lstm(layer.get_weights(), x, valid, Sizes(3, 2), partial=True)
        np.testing.assert_allclose(model.predict([x, valid], verbose=0), want, atol=1e-5)


def test_compiled_training_is_the_same():
    """Compiled by XLA, three steps of training give the losses of a plain run (Torch has no XLA: compiled is plain)."""
    case = some_case(seed=3)
    curves = []
    for compiled in (False, keras.backend.backend() != "torch"):
        inputs, mask = keras.Input(case.inputs.shape[1:]), keras.Input(case.mask.shape[1:], dtype="bool")
        model = keras.Model([inputs, mask], layer_of(case)(inputs, mask=mask))
        model.compile("sgd", "mse", jit_compile=compiled, run_eagerly=not compiled and not JAX)
        data = [filled(case, np.nan).inputs, case.mask], np.ones((*case.mask.shape, 2), "float32")
        curves.append([model.train_on_batch(*data) for _ in range(3)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    assert curves[0][0] != curves[0][2]


def test_config_round_trip():
    """A layer rebuilt from its serialised config is the same layer; the defaults are the stock layer's."""
    layer = MaskedConvLSTM1D(
        3, (5,), activation="relu", bias_initializer="ones", unit_forget_bias=False, name="x", partial=True,
        strides=2, padding="same", kernel_regularizer="l2", bias_constraint="non_neg", dropout=0.1, seed=3,
        return_state=True, go_backwards=True, dtype="mixed_bfloat16", data_format="channels_first",
    )  # fmt: skip
    cell = MaskedConvLSTM1DCell(3, 5, padding="same", partial=True, mask_channel=True, dropout=0.2)
    for one in (layer, cell, MaskedMaxPooling1D(3), MaskedAveragePooling1D(3), RowsRNN([cell], go_backwards=True)):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(one))
        assert type(again) is type(one)
        assert again.get_config() == one.get_config()
    ours, stock = (cls(4, 3, name="x").get_config() for cls in (MaskedConvLSTM1D, STOCK))
    assert ours == {**stock, "partial": False}


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("state", [True, False])
def test_says_its_output_shape_and_mask(sequences, state):
    """The declared shapes are the real ones; the mask goes on with sequences and ends with a last state."""
    layer = MaskedConvLSTM1D(3, 2, strides=2, return_sequences=sequences, return_state=state)
    symbolic = layer(keras.Input(batch_shape=(2, 4, 5, 1)), mask=keras.Input(batch_shape=(2, 4, 5), dtype="bool"))
    mask = np.ones((2, 4, 5), bool)
    real = layer(np.zeros((2, 4, 5, 1), "float32"), mask=mask)
    shapes = [[tuple(one.shape) for one in keras.tree.flatten(parts)] for parts in (real, symbolic)]
    declared = layer.compute_output_shape((2, 4, 5, 1))
    assert shapes[0] == shapes[1] == (list(declared) if state else [declared])
    masks = [getattr(one, "_keras_mask", None) for one in keras.tree.flatten(real)]
    assert (masks[0] is not None) == sequences
    assert not any(one is not None for one in masks[1:])
    if sequences:
        assert tuple(masks[0].shape) == shapes[0][0][:3]


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 5e-3), ("mixed_bfloat16", 4e-2)])
def test_mixed_precision_is_kept(policy, tolerance):
    """Under a mixed policy weights are float32, outputs of the small type and near the exact ones."""
    case = some_case(seed=4, partial=True)
    layer = layer_of(case, dtype=policy)
    out = layer(filled(case, np.nan).inputs, mask=case.mask)
    assert keras.backend.standardize_dtype(out.dtype) == policy.removeprefix("mixed_")
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    np.testing.assert_allclose(told(ops.cast(out, "float32")), oracle(case)[0], atol=tolerance)


def test_channels_first_is_the_same_layer_on_swapped_axes():
    """With `data_format="channels_first"` inputs, outputs and states have channels before rows; numbers are equal."""
    case = some_case(seed=5, strides=2)
    last = layer_of(case, return_state=True)(case.inputs, mask=case.mask)
    layer = MaskedConvLSTM1D(
        2, 3, strides=2, padding="same", return_sequences=True, return_state=True, data_format="channels_first"
    )
    x = np.swapaxes(case.inputs, 2, 3)
    layer.build(x.shape)
    layer.set_weights(case.weights)
    first = layer(x, mask=case.mask, initial_state=[ops.zeros((2, 2, 3))] * 2)
    assert [tuple(one.shape) for one in first] == list(layer.compute_output_shape(x.shape))
    for one, other in zip(first, last, strict=True):
        np.testing.assert_allclose(np.swapaxes(told(one), -1, -2), told(other), atol=1e-6)


def test_stateful_goes_on_where_the_last_batch_ended():
    """Two halves of a sequence, one after the other, give the outputs of the whole; a reset starts from nothing."""
    case = some_case(seed=6, steps=6)
    whole = outputs_of(case)
    layer = layer_of(case, stateful=True)
    for _ in range(2):
        halves = [told(layer(case.inputs[:, part], mask=case.mask[:, part])) for part in (np.s_[:3], np.s_[3:])]
        np.testing.assert_allclose(np.concatenate(halves, axis=1), whole, atol=1e-6)
        layer.reset_state()
    model = keras.Sequential([keras.Input(batch_shape=case.inputs.shape), layer])
    model.compile("sgd", "mse", jit_compile=False)
    model.train_on_batch(case.inputs, whole)
    assert np.isfinite(model.predict(case.inputs, batch_size=2, verbose=0)).all()
    assert JAX or all(told(state).any() for state in layer.states)  # on JAX Keras' trainers keep no states (3.15)


def test_the_mask_goes_along_through_layers():
    """Through strides, pooling and a layer with an initial state the mask reaches the last layer unasked."""
    case = some_case(seed=7, rows=9)
    layers = [
        layer_of(case, strides=2),
        MaskedMaxPooling1D(2),
        MaskedConvLSTM1D(3, 2, return_sequences=True),
    ]
    x, mask, unasked = filled(case, np.nan).inputs, ops.convert_to_tensor(case.mask), None
    for layer in layers:
        states = [ops.zeros((2, 2, 3))] * 2 if layer is layers[2] else None
        options = {} if states is None else {"initial_state": states}
        unasked = layer(x, mask=mask) if unasked is None else layer(unasked, **options)
        x, mask = layer(x, mask=mask, **options), layer.compute_mask(None, mask)
        np.testing.assert_array_equal(told(unasked), told(x))
        np.testing.assert_array_equal(told(unasked._keras_mask), told(mask))
    assert not told(x)[~told(mask)].any()
    assert 0 < told(mask).sum() < told(mask).size


@property_test
@given(cases(strides=False, options={}), st.integers(1, 4), st.sampled_from(FILLS))
def test_pooling_takes_the_valid_rows(case, size, fill):
    """Pools are the maximum and mean of their valid rows, whatever stands in the others; gradients there are 0."""
    hidden = filled(case, fill).inputs
    for layer, reduce in ((MaskedMaxPooling1D(size), np.max), (MaskedAveragePooling1D(size), np.mean)):
        want, shown = pooled(case.inputs, case.mask, size, reduce)
        outputs, found = gradients(lambda x, layer=layer: layer(x, mask=case.mask), [hidden], some)
        np.testing.assert_allclose(outputs, want, atol=1e-6)
        assert np.isfinite(found[0]).all()
        assert not found[0][~case.mask].any()
        assert found[0].any() == case.mask.any()
        np.testing.assert_array_equal(told(layer(hidden, mask=case.mask)._keras_mask), shown)
        assert layer.compute_output_shape(case.inputs.shape) == outputs.shape
        every = np.ones_like(case.mask)
        want = pooled(case.inputs, every, size, reduce)[0]
        np.testing.assert_allclose(told(layer(case.inputs)), want, atol=1e-6)
        of_steps = told(layer(hidden, mask=case.mask.all(axis=2)))
        masked = case.mask & case.mask.all(axis=2, keepdims=True)
        np.testing.assert_allclose(of_steps, pooled(case.inputs, masked, size, reduce)[0], atol=1e-6)


def cell_of(layer, **options):
    """A cell with a layer's arguments and weights."""
    config = {**layer.cell.get_config(), **options, "name": "cell"}
    cell = MaskedConvLSTM1DCell.from_config(config)
    _, _, rows, channels = layer._build_shapes_dict["sequences_shape"]
    cell.build((None, rows, channels + cell.mask_channel))
    cell.set_weights(layer.get_weights())
    return cell


@stock_test
@given(cases())
def test_a_cell_in_an_rnn_is_the_layer(case):
    """`keras.layers.RNN` over a cell with a mask channel gives the layer's outputs, mask and states."""
    layer = layer_of(case, return_state=True)
    outputs, *states = (told(one) for one in layer(case.inputs, mask=case.mask))
    backwards = case.options["go_backwards"]
    cell = cell_of(layer, mask_channel=True)
    rnn = keras.layers.RNN(cell, return_sequences=True, return_state=True, go_backwards=backwards)
    x = np.concatenate([filled(case, np.nan).inputs, case.mask[..., None]], axis=-1)
    got, *got_states = (told(one) for one in rnn(x))
    assert_near([got[..., :-1], got[..., -1], *got_states], [outputs, case.shown, *states], atol=1e-5)


def test_a_cell_keeps_to_the_rnns_own_mask_of_steps():
    """Without a mask channel, `RNN`'s `(batch, steps)` mask and `zero_output_for_mask` give the layer's outputs."""
    case = some_case(seed=8)
    layer, mask = layer_of(case), case.mask[..., 0]
    if JAX:  # where Keras' own RNN broadcasts a mask of steps over vectors only (3.15)
        mask = np.ones_like(mask)
    rnn = keras.layers.RNN(cell_of(layer), return_sequences=True, zero_output_for_mask=True)
    want = told(layer(case.inputs, mask=mask))
    np.testing.assert_allclose(told(rnn(case.inputs, mask=None if JAX else mask)), want, atol=1e-6)


def stack(rnn, **options):
    return rnn(
        [
            MaskedConvLSTM1DCell(
                3, 3, strides=2, padding="same", mask_channel=True, dropout=0.2, recurrent_dropout=0.2
            ),
            MaskedConvLSTM1DCell(2, 2, mask_channel=True),
        ],
        return_sequences=True,
        **options,
    )


def test_cells_stack_as_layers_do():
    """A stack of cells in one RNN equals layers one after the other, with the mask between them."""
    case = some_case(seed=9, rows=9)
    rnn = stack(keras.layers.RNN)
    x = np.concatenate([filled(case, np.nan).inputs, case.mask[..., None]], axis=-1)
    got = told(rnn(x))
    first = MaskedConvLSTM1D(3, 3, strides=2, padding="same", return_sequences=True)
    second = MaskedConvLSTM1D(2, 2, return_sequences=True)
    second(first(case.inputs, mask=case.mask))
    for layer, cell in zip((first, second), rnn.cell.cells, strict=True):
        layer.set_weights(cell.get_weights()[:3])
    want = second(first(case.inputs, mask=case.mask))
    np.testing.assert_allclose(got[..., :-1], told(want), atol=1e-5)
    np.testing.assert_array_equal(got[..., -1], told(want._keras_mask))


def test_rows_rnn_knows_its_shapes_in_a_model():
    """In a functional model `RowsRNN` tells the shapes of outputs and states, trains, and keeps state if asked."""
    inputs = keras.Input((None, 9, 3))
    symbolic = stack(RowsRNN, return_state=True)(inputs)
    assert [one.shape for one in keras.tree.flatten(symbolic)] == [
        (None, None, 4, 3), *[(None, 5, 3)] * 2, *[(None, 4, 2)] * 2
    ]  # fmt: skip
    model = keras.Model(inputs, symbolic[0])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.concatenate([some((4, 3, 9, 2)), np.ones((4, 3, 9, 1))], axis=-1).astype("float32")
    losses = [model.train_on_batch(x, np.ones((4, 3, 4, 3), "float32")) for _ in range(5)]
    assert losses[-1] != losses[0]
    assert np.isfinite(losses).all()
    rnn = RowsRNN(MaskedConvLSTM1DCell(2, 3, padding="same"), stateful=True)
    before, after = (told(rnn(x)) for _ in range(2))
    rnn.reset_state()
    assert np.abs(before - after).max() > 1e-3
    np.testing.assert_allclose(told(rnn(x)), before, atol=1e-6)


LOAD = """
import sys
import keras, numpy as np
import models.layers
model = keras.saving.load_model(sys.argv[1] + "/model.keras")
with np.load(sys.argv[1] + "/data.npz") as data:
    np.save(sys.argv[1] + "/outputs.npy", model.predict([data["x"], data["mask"]], verbose=0))
"""


def test_keras_file_round_trip_in_a_fresh_process(tmp_path):
    """A saved model of all layers, cells and poolings gives the same outputs where another process loads it."""
    inputs, mask = keras.Input((None, 9, 2)), keras.Input((None, 9), dtype="bool")
    x = MaskedConvLSTM1D(3, 3, padding="same", partial=True, return_sequences=True)(inputs, mask=mask)
    x = MaskedMaxPooling1D(2)(x)
    x = MaskedAveragePooling1D(1)(MaskedConvLSTM1D(3, 2, go_backwards=True, return_sequences=True)(x))
    x = RowsRNN([MaskedConvLSTM1DCell(2, 3, padding="same"), MaskedConvLSTM1DCell(2, 2)])(ops.tanh(x))
    model = keras.Model([inputs, mask], x)
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(2, 4, 9, 2)).astype("float32"), "mask": rng.random((2, 4, 9)) < 0.6}
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", **data)
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, capture_output=True, timeout=300)
    want = model.predict([data["x"], data["mask"]], verbose=0)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), want, atol=1e-6)
