"""Buckets: sequences of different length in few shapes, with the numbers of padding to the longest."""

from functools import partial
from itertools import combinations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import buckets
from models.autoencoder import AutoencoderConfig, build_autoencoder, expect
from models.buckets import batches, bucket_sizes, divide, padding_ratio, run
from models.layers import MaskedConvLSTM1D

property_test = settings(max_examples=25, deadline=None)
some_lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def ragged(lengths, rows=2, channels=3, seed=0, observed=0.8):
    """Sequences of these lengths, and flags of observed cells."""
    rng = np.random.default_rng(seed)
    shapes = [(length, rows, channels) for length in lengths]
    return [rng.normal(size=shape).astype("float32") for shape in shapes], [rng.random(s) < observed for s in shapes]


def padded_to_longest(sequences, flags):
    """The same sequences as one batch: values, observed, mask."""
    (part,) = batches(sequences, flags, sizes=[max(map(len, sequences))], batch=len(sequences))
    return part.values, part.observed, part.mask


@property_test
@given(some_lengths, st.integers(1, 6))
def test_sizes_waste_the_least_that_any_choice_wastes(lengths, most):
    """No other choice of at most `most` sizes pads less; tried are all of them."""
    sizes = bucket_sizes(lengths, most)
    distinct = sorted(set(lengths))
    choices = [
        (*shorter, distinct[-1])
        for count in range(min(most, len(distinct)))
        for shorter in combinations(distinct[:-1], count)
    ]
    assert padding_ratio(lengths, sizes) == min(padding_ratio(lengths, choice) for choice in choices)
    assert len(sizes) <= most
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max(lengths)


@property_test
@given(some_lengths, st.integers(1, 6))
def test_more_sizes_never_pad_more_than_the_longest_does(lengths, most):
    """The ratio lies between 1 and that of padding to the longest, and falls with the number of sizes."""
    longest = max(lengths) * len(lengths) / sum(lengths)
    ratios = [padding_ratio(lengths, bucket_sizes(lengths, m)) for m in range(1, most + 1)]
    assert ratios[0] == longest
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] >= 1
    assert padding_ratio(lengths, bucket_sizes(lengths, len(set(lengths)))) == 1


def test_many_distinct_lengths_are_thinned_and_stay_near_the_best(monkeypatch):
    """With a tenth of the distinct lengths tried, the longest is still a size, and little more is padded."""
    lengths = np.random.default_rng(0).lognormal(6, 1, 5000).astype(int) + 1
    exact = bucket_sizes(lengths)
    monkeypatch.setattr(buckets, "CANDIDATES", len(np.unique(lengths)) // 10)
    thinned = bucket_sizes(lengths)
    assert thinned[-1] == lengths.max()
    assert padding_ratio(lengths, exact) <= padding_ratio(lengths, thinned) < 1.01 * padding_ratio(lengths, exact)


def test_padding_of_skewed_and_even_lengths():
    """Six sizes leave little of the padding of 100,000 lognormal or uniform lengths."""
    rng = np.random.default_rng(0)
    ratios = {}
    for name, lengths in (
        ("lognormal", np.minimum(rng.lognormal(3, 1, 100_000).astype(int) + 1, 1000)),
        ("uniform", rng.integers(1, 101, 100_000)),
    ):
        ratios[name] = [padding_ratio(lengths, bucket_sizes(lengths, most)) for most in (1, 6, 8)]
    assert ratios["lognormal"][0] > 20
    assert ratios["lognormal"][1] < 1.6
    assert ratios["uniform"][0] == pytest.approx(100 / 50.5, rel=0.01)
    assert ratios["uniform"][1] == pytest.approx(1 + 1 / 6, abs=0.02)
    assert all(eight < six for _, six, eight in ratios.values())


@property_test
@given(some_lengths, st.integers(1, 6), st.integers(1, 5))
def test_each_sequence_comes_out_once_in_few_shapes(lengths, most, batch):
    """Batches hold every sequence exactly once and whole, in at most `most` shapes; all else is zero and masked."""
    sequences, flags = ragged(lengths, observed=1)
    parts = list(batches(sequences, flags, sizes=bucket_sizes(lengths, most), batch=batch))
    assert sorted(place for part in parts for place in part.places) == list(range(len(lengths)))
    assert len({part.values.shape for part in parts}) <= most
    for part in parts:
        assert part.values.shape[0] == batch
        assert part.values.shape == part.observed.shape
        assert part.values.shape[:3] == part.mask.shape
        for row, place in enumerate(part.places):
            np.testing.assert_array_equal(part.values[row, : lengths[place]], sequences[place])
            assert part.mask[row, : lengths[place]].all()
            assert not part.mask[row, lengths[place] :].any()
        assert not part.mask[len(part.places) :].any()
        assert not part.values[~part.observed].any()


def test_sequences_stand_in_the_smallest_size_that_holds_them():
    """A length goes to the next size up, in the order given; sizes that hold nothing make no bucket."""
    found = divide([3, 8, 1, 4, 8], sizes=[9, 3, 5, 4])
    assert [(bucket.size, bucket.places.tolist()) for bucket in found] == [(3, [0, 2]), (4, [3]), (9, [1, 4])]


def test_observed_flags_make_the_mask():
    """A row without an observed cell is masked; without flags every cell is observed."""
    sequences, flags = ragged([2, 3])
    flags[1][1] = False
    (part,) = batches(sequences, flags, sizes=[3], batch=2)
    np.testing.assert_array_equal(part.observed[1], flags[1])
    np.testing.assert_array_equal(part.mask[1], flags[1].any(axis=-1))
    (part,) = batches(sequences, sizes=[3], batch=2)
    np.testing.assert_array_equal(part.mask.sum(axis=(1, 2)), [4, 6])


@pytest.fixture(scope="module", params=[True, False], ids=["sequences", "last state"])
def layer(request):
    """A layer with biases, so that what a masked step adds would show."""
    one = MaskedConvLSTM1D(
        4, 3, padding="same", return_sequences=request.param, bias_initializer=keras.initializers.RandomNormal(seed=0)
    )
    one.build((None, None, 2, 3))
    return one


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_numbers_are_those_of_single_runs_and_of_padding_to_the_longest(layer, lengths, seed):
    """Every sequence has the result that it has alone without padding, and padded to the longest, in its own place."""

    def model(values, observed, mask):
        return layer(values, mask=mask)

    sequences, flags = ragged(lengths, seed=seed)
    results = run(model, sequences, flags, sizes=bucket_sizes(lengths, 3), batch=4)
    padded = np.asarray(model(*padded_to_longest(sequences, flags)))
    for sequence, flag, result, together in zip(sequences, flags, results, padded, strict=True):
        alone = np.asarray(model(sequence[None], flag[None], flag.any(-1)[None]))[0]
        assert result.shape == alone.shape
        np.testing.assert_allclose(result, alone, atol=1e-6)
        np.testing.assert_allclose(result, together[: len(result)], atol=1e-6)


@pytest.mark.parametrize("head", ["full", "steps", "last", "mean"])
def test_the_autoencoder_runs_over_ragged_sequences(head):
    """The autoencoder expects of a sequence in a bucket what it expects of it alone, for every head."""
    network = build_autoencoder(AutoencoderConfig(steps=9, rows=2, channels=3, filters=(4,), head=head), seed=1)
    lengths = [2, 9, 5, 2, 7]
    sequences, flags = ragged(lengths)
    results = run(partial(expect, network, batch=2), sequences, flags, sizes=bucket_sizes(lengths, 2), batch=2)
    for sequence, flag, result in zip(sequences, flags, results, strict=True):
        alone = expect(network, sequence[None], flag[None], flag.any(-1)[None], batch=1)[0]
        assert alone.any()
        assert result.shape == alone.shape == (sequence.shape if head in {"full", "steps"} else sequence.shape[1:])
        np.testing.assert_allclose(result, alone, atol=1e-6)


def test_buckets_train_in_at_most_as_many_shapes_as_sizes():
    """A training over buckets is traced at most once for each size, short last batches included, and never again."""
    network = build_autoencoder(AutoencoderConfig(steps=9, rows=2, channels=3, filters=(2,)), seed=1)
    traced, compute = [], network.compute_loss
    network.compute_loss = lambda x, y, *rest, **named: (traced.append(y.shape), compute(x, y, *rest, **named))[1]
    network.compile("adam", jit_compile=False)
    lengths = [2, 9, 5, 2, 7, 9, 2]
    sequences, flags = ragged(lengths)
    counts = []
    for _ in range(2):
        for part in batches(sequences, flags, sizes=(2, 5, 9), batch=2):
            shown = {"values": part.values, "visible": part.observed.astype("float32"), "mask": part.mask}
            assert np.isfinite(network.train_on_batch(shown, part.values, part.observed.astype("float32")))
        counts.append(len(traced))
    assert len({tuple(shape) for shape in traced}) <= 3
    assert counts[0] == counts[1]


def test_nothing_to_run_gives_nothing():
    """Without sequences there is no batch and no result."""
    assert list(batches([])) == []
    assert run(lambda *parts: parts[0], []) == []


ONE = np.zeros((4, 2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: run(None, [ONE, ONE[..., :2]]),
            "batches was given sequence 1 of shape (4, 2, 2), but it needs (steps, 2, 3) as sequence 0: run "
            "sequences of other rows or "
            "channels apart.",
        ),
        (
            lambda: run(None, [ONE, ONE, ONE[:, :1]]),
            "batches was given sequence 2 of shape (4, 1, 3), but it needs (steps, 2, 3) as sequence 0: run "
            "sequences of other rows or "
            "channels apart.",
        ),
        (
            lambda: run(None, [ONE, ONE[:0]]),
            "batches was given sequence 1 of shape (0, 2, 3), but it needs (steps, rows, channels) with at least one "
            "of each: drop empty "
            "sequences.",
        ),
        (
            lambda: run(None, [ONE[0]]),
            "batches was given sequence 0 of shape (2, 3), but it needs (steps, rows, channels): add the missing "
            "axis (one row, or one "
            "channel) or cut it into rows.",
        ),
        (
            lambda: run(None, [ONE], [ONE[1:] > 0]),
            "batches was given observed for sequence 0 of shape (3, 2, 3), but it needs (4, 2, 3): give a flag for "
            "each cell.",
        ),
        (
            lambda: run(None, [ONE], []),
            "batches was given observed for 0 of 1 sequences, but it needs one for each: give flags for each one, or "
            "None.",
        ),
        (
            lambda: run(None, [ONE], sizes=[2, 3]),
            "Sequence 0 has 4 steps and the sizes are (2, 3); the largest size must hold the longest sequence: take "
            "bucket_sizes of these lengths, or cut the sequence.",
        ),
        (
            lambda: run(None, [ONE], batch=0),
            "batches was given batch=0; give the number of sequences in a batch, at least 1.",
        ),
        (
            lambda: bucket_sizes([3], most=0),
            "bucket_sizes was given most=0; give the number of shapes to compile, at least 1.",
        ),
        (
            lambda: bucket_sizes([3, 0]),
            "bucket_sizes was given lengths of shape (2,) and type int64 that begin [3, 0], but it needs (n,) of "
            "whole numbers from 1, one "
            "for each sequence: drop empty sequences.",
        ),
        (
            lambda: bucket_sizes([2.5]),
            "bucket_sizes was given lengths of shape (1,) and type float64 that begin [2.5], but it needs (n,) of "
            "whole numbers from 1, one "
            "for each sequence: drop empty sequences.",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    """What cannot share a batch is refused with its place, its shape, the shape wanted and the cure."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 – the whole message is compared
        call()
    assert str(raised.value) == message
