"""The autoencoder: the law through the whole model, its loss, its training, and its files."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models import autoencoder
from models.autoencoder import (
    KINDS,
    LOSSES,
    AutoencoderConfig,
    _Batches,
    _fit_digest,
    _hidden,
    build_autoencoder,
    expect,
    fit,
    hide_group,
    last_segment,
    load_model,
    masked_loss,
    same_size,
    save_model,
)

CONFIG = AutoencoderConfig(steps=3, rows=4, channels=2, filters=(5, 4), kernel=3, latent=4)
SMALL = replace(CONFIG, filters=(6,))  # quicker to trace, for the tests that train
FILLS = (0.0, 99.0, 1e30, np.nan, np.inf)
property_test = settings(max_examples=10, deadline=None)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    """A model with biases as after training: those of a new one are 0, which would hide what leaks through them."""
    network, rng = build_autoencoder(replace(CONFIG, kind=request.param), seed=1), np.random.default_rng(1)
    network.set_weights([weight + rng.normal(scale=0.1, size=weight.shape) for weight in network.get_weights()])
    return network


def windows(n, seed=0, config=CONFIG, valid=0.7):
    """Random windows: values, observed, mask."""
    rng = np.random.default_rng(seed)
    shape = (n, config.steps, config.rows, config.channels)
    mask = rng.random(shape[:3]) < valid
    observed = (rng.random(shape) < 0.8) & mask[..., None]
    return np.where(observed, rng.normal(size=shape), 0).astype("float32"), observed, mask


def waves(n, seed=0, config=CONFIG):
    """Windows that can be learned: sines of random phase, a few cells unobserved."""
    rng = np.random.default_rng(seed)
    time = np.arange(config.steps * config.rows)[None, :, None] * 0.4
    values = np.sin(time + rng.uniform(0, 6, (n, 1, 1)) + np.arange(config.channels))
    shape = (n, config.steps, config.rows, config.channels)
    observed = rng.random(shape) < 0.9
    return values.reshape(shape).astype("float32"), observed, np.ones(shape[:3], bool)


def inputs(values, visible, mask):
    return {
        "values": tf.convert_to_tensor(values),
        "visible": tf.cast(visible, tf.float32),
        "mask": tf.constant(mask),
    }


@property_test
@given(seed=st.integers(0, 1000), fill=st.sampled_from(FILLS))
def test_flags_of_masked_rows_change_nothing(model, seed, fill):
    """In a masked row not even the flags of visibility are read."""
    values, visible, mask = windows(4, seed)
    claimed = np.where(mask[..., None], visible, True)
    other = np.where(mask[..., None], values, np.float32(fill))
    np.testing.assert_array_equal(model(inputs(other, claimed, mask)), model(inputs(values, visible, mask)))


def test_nothing_valid_gives_zeros(model):
    """A window without a real row gives zeros."""
    values, visible, mask = windows(2)
    out = model(inputs(np.full_like(values, np.nan), np.zeros_like(visible), np.zeros_like(mask)))
    np.testing.assert_array_equal(out, np.zeros_like(values))


def test_all_information_passes_a_bottleneck(model):
    """What the decoder gets is at most half as many numbers as the window has cells, for wide latents too."""
    each_step = len(model.get_layer("latent").output.shape) > 2  # not once for the window
    for latent in (1, 4, 1000):
        config = replace(model.config, latent=latent)
        wide = build_autoencoder(config)
        code = wide.get_layer("latent").output
        times = config.steps if each_step else 1
        assert 2 * code.shape[-1] * times <= config.steps * config.rows * config.channels
    zero = [np.zeros_like(weight) for weight in model.get_layer("latent").get_weights()]
    cut = build_autoencoder(model.config)
    cut.get_layer("latent").set_weights(zero)
    everything = np.ones((2, CONFIG.steps, CONFIG.rows), bool)
    out = np.asarray(cut(inputs(*windows(2, valid=1)[:2], everything)))
    np.testing.assert_array_equal(out[0], out[1])


@property_test
@given(st.integers(0, 1000), st.sampled_from(FILLS), st.sampled_from(LOSSES), st.sampled_from([(2, 3, 2), (3, 2)]))
def test_loss_is_the_formula(seed, fill, loss, cells):
    """The loss is the mean over sequences of Σ w·cost / Σ w, whatever stands where w is 0, for windows and segments."""
    rng = np.random.default_rng(seed)
    shape = (rng.integers(1, 5), *cells)
    values, expected = rng.normal(scale=2, size=(2, *shape)).astype("float32")
    weight = (rng.uniform(0.5, 2, shape) * (rng.random(shape) < 0.5)).astype("float32")
    weight[0] *= rng.random() < 0.5
    each = []
    for y, p, w in zip(values, expected, weight, strict=True):
        error = np.abs(y - p)
        cost = error**2 / 2 if loss == "squared" else np.where(error <= 1, error**2 / 2, error - 0.5)
        if w.sum() > 0:
            each.append((w * cost).sum() / w.sum())
    filled = np.where(weight > 0, values, np.float32(fill))
    want = np.mean(each) if each else 0.0
    np.testing.assert_allclose(masked_loss(filled, expected, weight, loss), want, rtol=1e-5)


@property_test
@given(st.integers(0, 1000), st.sampled_from(LOSSES))
def test_loss_has_no_gradient_where_nothing_counts(seed, loss):
    """The loss' gradient by an expected cell is 0 where w = 0, and finite beside NaN."""
    values, observed, _ = windows(3, seed)
    expected = tf.constant(np.random.default_rng(seed).normal(size=values.shape).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(expected)
        total = masked_loss(np.where(observed, values, np.float32(np.nan)), expected, observed, loss)
    gradient = tape.gradient(total, expected).numpy()
    assert np.isfinite(gradient).all()
    assert not gradient[~observed].any()
    assert gradient[observed].all()


@every_kind
def test_training_lowers_the_loss_and_is_deterministic(kind):
    """A few epochs halve the loss; the same seed gives the same weights and history."""
    data, held = waves(200), waves(40, seed=1)
    histories, weights = [], []
    for run in range(2):
        network, told = build_autoencoder(same_size(replace(SMALL, kind=kind))), []
        keras.utils.set_random_seed(run)  # what ran before must not matter
        histories.append(
            fit(network, *data, validation=held, epochs=8, batch=16, seed=3, groups=1,
                on_epoch=lambda epoch, logs, told=told: told.append((epoch, logs["val_loss"])))
        )  # fmt: skip
        weights.append(np.concatenate([weight.ravel() for weight in network.get_weights()]))
        assert told == list(enumerate(histories[-1]["val_loss"]))
    assert histories[0]["loss"][-1] < histories[0]["loss"][0] / 2
    assert histories[0] == histories[1]
    np.testing.assert_array_equal(weights[0], weights[1])


def test_best_weights_are_restored_when_validation_stops_improving():
    """Training on one thing and validating on its opposite stops early, with the best epoch's weights."""
    values, observed, mask = waves(64)
    network = build_autoencoder(SMALL)
    history = fit(
        network, values, observed, mask, validation=(-3 - values, observed, mask), epochs=30, batch=16, hide=0
    )
    assert len(history["val_loss"]) < 30
    expected = expect(network, -3 - values, observed, mask)
    best = masked_loss(-3 - values, expected, observed)
    np.testing.assert_allclose(best, min(history["val_loss"]), rtol=1e-4)


class Kept(dict):
    """Checkpoints in memory; the fit is cut short once `stop` epochs are kept."""

    def __init__(self, stop=0):
        super().__init__()
        self.stop = stop

    def load(self, key):
        return self.get(key)

    def save(self, key, state):
        self[key] = {name: array.copy() for name, array in state.items()}
        if state["epoch"] == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("stop", "held_out"), [(2, False), ("last", True)])
def test_a_fit_that_was_cut_short_goes_on_to_the_same_weights(stop, held_out):
    """To the bit, and with the same losses, all of which are told; also where early stopping had ended it."""
    data = waves(70, config=SMALL)
    more = {
        "validation": windows(20, seed=5, config=SMALL) if held_out else None,
        "epochs": 8,
        "batch": 32,
        "groups": 2,
    }
    whole = build_autoencoder(SMALL, seed=1)
    losses = fit(whole, *data, **more)
    epochs = len(losses["loss"])
    kept = Kept(epochs if stop == "last" else stop)
    with pytest.raises(KeyboardInterrupt):
        fit(build_autoencoder(SMALL, seed=1), *data, **more, checkpoints=kept)
    kept.stop, told, model = 0, [], build_autoencoder(SMALL, seed=1)
    again = fit(model, *data, **more, checkpoints=kept, on_epoch=lambda epoch, logs: told.append((epoch, logs["loss"])))
    assert again == losses
    assert told == list(enumerate(losses["loss"]))
    assert all((one == other).all() for one, other in zip(model.get_weights(), whole.get_weights(), strict=True))
    assert len(kept) == 1


def test_only_the_same_fit_goes_on():
    """Other windows, weights to begin with, or arguments have a checkpoint of their own; the same have the same."""
    data, other = waves(40, config=SMALL), waves(40, seed=1, config=SMALL)
    asked = [((8, 32, 0), data, 1), ((8, 32, 0), other, 1), ((8, 32, 0), data, 2), ((8, 32, 3), data, 1)]
    keys = [_fit_digest(build_autoencoder(SMALL, seed=seed), arguments, arrays) for arguments, arrays, seed in asked]
    assert len(set(keys)) == len(asked)
    assert _fit_digest(build_autoencoder(SMALL, seed=1), (8, 32, 0), data) == keys[0]


def test_a_fit_by_other_code_does_not_go_on(tmp_path, monkeypatch):
    """After an upgrade of the package a training begins anew, as its loss or its patience may be another."""
    fit_of = build_autoencoder(SMALL), (8, 32, 0), waves(8, config=SMALL)
    before = _fit_digest(*fit_of)
    shutil.copytree(autoencoder.CODE, tmp_path / "models")
    monkeypatch.setattr(autoencoder, "CODE", tmp_path / "models")
    assert _fit_digest(*fit_of) == before
    with (tmp_path / "models" / "layers.py").open("a") as source:
        source.write("# changed\n")
    assert _fit_digest(*fit_of) != before


@every_kind
def test_unobserved_values_do_not_reach_training(kind):
    """What stands in unobserved cells and masked rows changes no trained weight."""
    values, observed, mask = windows(40)
    results = []
    for fill in (0.0, np.nan):
        network = build_autoencoder(replace(SMALL, kind=kind))
        fit(network, np.where(observed, values, np.float32(fill)), observed, mask, epochs=2, batch=16, hide=0.3)
        results.append(network.get_weights())
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


def test_last_batch_is_filled_with_windows_that_count_nothing(model):
    """All batches have one shape, and the fill adds nothing to the loss."""
    values, observed, mask = windows(7)
    batches = _Batches(CONFIG, values, observed, mask, batch=5)
    assert [len(batches[i][1]) for i in range(len(batches))] == [5, 5]
    shown, true, weight = batches[1]
    alone = masked_loss(values[5:], model(inputs(values[5:], observed[5:], mask[5:])), observed[5:])
    np.testing.assert_allclose(masked_loss(true, model(shown), weight), alone, rtol=1e-5)


def test_hidden_cells_are_drawn_as_asked():
    """About the share `hide` is hidden, anew each epoch; with groups, one of them in half of the last segments too."""
    values, _, mask = windows(2000)
    hidden = _hidden(mask, values.shape, 0.2, 0, np.random.default_rng(0))
    assert abs(hidden.mean() - 0.2) < 0.01
    whole = _hidden(mask, values.shape, 0.0, 1, np.random.default_rng(0)).all(axis=(2, 3))
    chosen = whole.any(axis=1)
    assert abs(chosen.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(whole[chosen].argmax(axis=1), last_segment(mask)[chosen])
    halves = _hidden(mask, values.shape, 0.0, 2, np.random.default_rng(0)).any(axis=(1, 2))
    even = np.arange(values.shape[3]) % 2 == 0
    for group, share in (((even), 0.25), (~even, 0.25), (even & False, 0.5)):
        assert abs((halves == group).all(axis=1).mean() - share) < 0.05


def test_hiding_every_group_in_turn_hides_each_cell_of_the_target_once():
    """Each channel of the target segment is hidden in exactly one group, and no other segment is."""
    values, _, mask = windows(20)
    target = last_segment(mask)
    for groups in (1, 2, 3):
        times = sum(hide_group(target, values.shape, group, groups).astype(int) for group in range(groups))
        at_target = np.arange(values.shape[1]) == target[:, None]
        np.testing.assert_array_equal(times, np.broadcast_to(at_target[:, :, None, None], values.shape))


def test_every_epoch_hides_anew_and_hidden_cells_count():
    """The next epoch hides other cells, and what is hidden is still in the loss."""
    values, observed, mask = windows(20)
    batches = _Batches(CONFIG, values, observed, mask, batch=5, hide=0.2, shuffle=True)
    before = batches[0]
    batches.on_epoch_begin()
    assert (before[0]["visible"] != batches[0][0]["visible"]).any()
    assert before[2].sum() > before[0]["visible"].sum(), "hidden cells must count in the loss"


def test_every_epoch_sees_other_hidden_cells_and_each_window_once():
    """Through a whole fit, batches hold each window once an epoch, in another order and with other cells hidden."""
    seen = []

    class Watched(_Batches):
        def __getitem__(self, index):
            seen.append((self.epoch, index, self.order.copy(), self.hidden))
            return super().__getitem__(index)

    batches = Watched(SMALL, *windows(20), batch=5, hide=0.3, shuffle=True)
    network = build_autoencoder(SMALL)
    network.compile("sgd", jit_compile=False)
    seen.clear()
    network.fit(batches, epochs=2, verbose=0, shuffle=False)
    epochs = sorted({epoch for epoch, *_ in seen})[-2:]
    orders = [[order for e, _, order, _ in seen if e == epoch][-1] for epoch in epochs]
    assert [sorted(order) for order in orders] == [list(range(20))] * 2
    assert list(orders[0]) != list(orders[1])
    assert [i for e, i, *_ in seen if e == epochs[-1]] == [0, 1, 2, 3]


def test_expected_values_depend_on_one_window_alone(model):
    """A window has the same expected values alone, in another order, and in batches of another size."""
    data = windows(23)
    all_at_once = expect(model, *data)
    assert all_at_once.shape == data[0].shape
    assert all_at_once.dtype == np.float32
    order = np.random.default_rng(0).permutation(23)
    shuffled = expect(model, *(part[order] for part in data), batch=4)
    np.testing.assert_allclose(shuffled, all_at_once[order], atol=1e-6)
    np.testing.assert_allclose(expect(model, *(part[7:8] for part in data)), all_at_once[7:8], atol=1e-6)
    assert expect(model, *(part[:0] for part in data)).shape == (0, *data[0].shape[1:])


def test_hidden_cells_are_not_seen(model):
    """What stands in hidden cells changes nothing, but what stands in visible ones does."""
    values, observed, mask = windows(6)
    hidden = np.random.default_rng(0).random(values.shape) < 0.4
    other = np.where(hidden, values + 5, values).astype("float32")
    want = expect(model, values, observed, mask, hidden=hidden)
    np.testing.assert_array_equal(expect(model, other, observed, mask, hidden=hidden), want)
    assert np.abs(expect(model, other, observed, mask) - expect(model, values, observed, mask)).max() > 1e-3


@property_test
@given(st.integers(0, 1000), st.sampled_from((0.05, 0.3, 1.0)))
def test_last_segment_is_the_last_step_with_a_real_row(seed, valid):
    """The index of the last step with a real row; −1 where there is none."""
    _, _, mask = windows(5, seed, valid=valid)
    want = [max((s for s in range(mask.shape[1]) if window[s].any()), default=-1) for window in mask]
    np.testing.assert_array_equal(last_segment(mask), want)


@every_kind
@pytest.mark.parametrize(("channels", "filters"), [(1, (24,)), (8, (24,)), (38, (24, 16))])
def test_all_kinds_are_of_the_same_size(kind, channels, filters):
    """Whatever the channels and layers, a network has as many parameters as the default kind's, give or take 10 %."""
    config = AutoencoderConfig(steps=8, rows=8, channels=channels, filters=filters)
    wanted = build_autoencoder(config).count_params()
    alike = same_size(replace(config, kind=kind))
    assert replace(alike, filters=filters) == replace(config, kind=kind), "nothing but the filters is changed"
    assert abs(build_autoencoder(alike).count_params() / wanted - 1) < 0.1


def test_the_lstm_is_the_stock_one():
    """The kind "lstm" encodes segments as `keras.layers.LSTM` of the same weights does."""
    config = replace(CONFIG, kind="lstm", filters=(6,), head="last")
    network = build_autoencoder(config, seed=3)
    encoder = next(layer for layer in network.layers if len(layer.weights) == 3)
    values, visible, _ = windows(5)
    everything = np.ones((5, CONFIG.steps, CONFIG.rows), bool)
    visible[:, -1] = False  # the newest segment, which the head "last" must not see
    shown = np.concatenate([np.where(visible, values, 0), visible], axis=-1).reshape(5, CONFIG.steps, -1)
    stock = keras.layers.LSTM(6)
    stock.build(shown.shape)
    kernel, recurrent, bias = encoder.get_weights()
    stock.set_weights([kernel[0], recurrent[0], bias])
    state = keras.Model(network.inputs, encoder.output)(inputs(values, visible, everything))
    np.testing.assert_allclose(np.asarray(state).reshape(5, 6), stock(shown.astype("float32")), atol=1e-6)


def test_the_convolutions_reach_over_the_whole_window():
    """The kind "conv1d" expects the newest segment of a long window by its oldest one too."""
    config = AutoencoderConfig(steps=12, rows=4, channels=2, filters=(8,), kind="conv1d")
    values, observed, mask = waves(3, config=config)
    network, hidden = build_autoencoder(config), np.zeros_like(observed)
    hidden[:, -1] = True
    before = expect(network, values, observed, mask, hidden=hidden)
    values[:, 0] += 1
    after = expect(network, values, observed, mask, hidden=hidden)
    assert (np.abs(after - before)[:, -1].max(axis=(1, 2)) > 1e-6).all()


LOAD = """
import sys, numpy as np
from pathlib import Path
from models.autoencoder import expect, load_model
folder = Path(sys.argv[1])
model, config = load_model(folder)
with np.load(folder / "data.npz", allow_pickle=False) as data:
    np.save(folder / "expected.npy", expect(model, data["values"], data["observed"], data["mask"]))
print(config)
"""


def test_round_trip_in_a_fresh_process(tmp_path):
    """A trained model that another process loads has the same config and expects the same to the bit."""
    network = build_autoencoder(SMALL, seed=5)
    values, observed, mask = windows(9)
    fit(network, values, observed, mask, epochs=1, batch=8)
    save_model(network, SMALL, tmp_path / "model")
    np.savez(tmp_path / "model" / "data.npz", values=values, observed=observed, mask=mask)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str(SMALL)
    np.testing.assert_array_equal(np.load(tmp_path / "model" / "expected.npy"), expect(network, values, observed, mask))


def test_a_missing_model_is_named(tmp_path):
    """Loading from a folder without a model raises FileNotFoundError with the file's name."""
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load_model(tmp_path)


def test_same_seed_builds_the_same_model():
    """The weights of a new model follow from its seed alone."""
    one, same, other = (build_autoencoder(CONFIG, seed=seed).get_weights() for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_the_default_model_is_what_it_was(tmp_path):
    """A config saved before strides, pooling, stem, head and loss loads as one without them."""
    save_model(build_autoencoder(CONFIG, seed=2), CONFIG, tmp_path)
    fields = json.loads((tmp_path / "model.json").read_text())
    old = {name: fields[name] for name in ("steps", "rows", "channels", "filters", "kernel", "latent")}
    (tmp_path / "model.json").write_text(json.dumps(old))
    network, config = load_model(tmp_path)
    assert config == CONFIG
    assert (config.strides, config.pooling, config.stem, config.head, config.loss) == (1, 1, 0, "full", "huber")
    for one, two in zip(network.get_weights(), build_autoencoder(CONFIG, seed=2).get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v, o, m: expect(build_autoencoder(CONFIG), v, o[:-1], m), "do not fit together"),
        (lambda v, o, m: expect(build_autoencoder(CONFIG), v, o, m[..., :-1]), "do not fit together"),
        (lambda v, o, m: expect(build_autoencoder(CONFIG), v * np.nan, o, m), "observed cell is NaN"),
        (lambda v, o, m: fit(build_autoencoder(CONFIG), v[:0], o[:0], m[:0]), "no windows"),
        (lambda v, o, m: expect(build_autoencoder(CONFIG), v[0], o[0], m[0]), r"it needs \(n, steps, 4, 2\)"),
        (lambda v, o, m: expect(build_autoencoder(CONFIG), v[..., :1], o, m), r"shape \(3, 3, 4, 1\), but"),
        (lambda v, o, m: expect(build_autoencoder(CONFIG), v[:, :, :2], o, m), r"shape \(3, 3, 2, 2\), but"),
        (lambda v, o, m: expect(build_autoencoder(replace(CONFIG, steps=2)), v, o, m), "at most 2 steps"),
    ],
)
def test_mistakes_in_data_are_named(call, message):
    """Data that do not fit raise a ValueError that says so."""
    with pytest.raises(ValueError, match=message):
        call(*windows(3))


CONFIG_MISTAKES = [
    ({"channels": 0}, "channels=0, but it needs a whole number of at least 1: give one."),
    ({"steps": 2.5}, "steps=2.5, but it needs a whole number of at least 1: give one."),
    ({"stem": -1}, "stem=-1, but it needs a whole number of at least 0: give 0 for none."),
    ({"filters": ()}, "filters=(), but it needs whole numbers of at least 1: give one for each layer."),
    ({"filters": (4, 0)}, "filters=(4, 0), but it needs whole numbers of at least 1: give one for each layer."),
    (
        {"strides": (2, 2, 1)},
        "strides=(2, 2, 1), but it needs one stride of at least 1, or as many as filters (2): give one for each layer, "
        "or the decoder cannot undo them.",
    ),
    (
        {"strides": (0, 1)},
        "strides=(0, 1), but it needs one stride of at least 1, or as many as filters (2): give one for each layer, "
        "or the decoder cannot undo them.",
    ),
    (
        {"strides": 4},
        "strides=4, but it needs at most kernel=3: take a longer kernel, or some rows are not read.",
    ),
    (
        {"strides": (3, 3)},
        "strides=(3, 3), but it needs at most the 2 rows that reach it in layer 1: take a smaller one, or fewer "
        "layers.",
    ),
    (
        {"pooling": 8},
        "pooling=8, but it needs at most the 4 rows that reach it in layer 0: take a smaller one, or fewer layers.",
    ),
    (
        {"strides": 2, "pooling": 2},
        "strides=2, but it needs at most the 1 rows that reach it in layer 1: take a smaller one, or fewer layers.",
    ),
    ({"head": "first"}, "head='first', but it needs one of ('full', 'steps', 'last', 'mean'): choose one."),
    ({"kind": "gru"}, "kind='gru', but it needs one of ('convlstm1d', 'conv1d', 'lstm'): choose one."),
    ({"kind": "lstm", "strides": 2}, "strides=2, but it needs 1 with kind='lstm': leave it out."),
    ({"kind": "conv1d", "stem": 2}, "stem=2, but it needs 0 with kind='conv1d': leave it out."),
    ({"loss": "mse"}, "loss='mse', but it needs one of ('huber', 'squared'): choose one."),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_MISTAKES)
def test_mistakes_in_a_config_are_named(change, message):
    """A field that no network can have is refused with its value, what is wanted, and the change that mends it."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 – the whole message is compared
        replace(CONFIG, **change)
    assert str(raised.value) == f"AutoencoderConfig was given {message}"
