"""Sequences of different length: batched by length, so that little is padded and few shapes are compiled."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float32]
Flags = NDArray[np.bool_]
Places = NDArray[np.int64]

MOST = 6
CANDIDATES = 2048


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences that are padded to one length.

    size: steps after padding
    places: `(n,)` int64, where these sequences stand in the list that was given, in its order
    """

    size: int
    places: Places


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one bucket as tensors, padded with zeros to its size and filled up with fully masked ones.

    values: `(batch, size, rows, channels)` float32
    observed: the same shape, bool, the cell holds a real reading
    mask: `(batch, size, rows)` bool, the row holds a real step (any channel observed)
    places: `(n,)` int64 with n ≤ batch, where the first n sequences stand in the list that was given
    """

    values: Values
    observed: Flags
    mask: Flags
    places: Places


def bucket_sizes(lengths: ArrayLike, most: int = MOST) -> tuple[int, ...]:
    """Return the at most `most` sizes, ascending, that waste the fewest padded steps; the last is the longest length.

    lengths `(n,)` are whole numbers from 1. A sequence goes into the smallest size that holds it. The answer is exact
    up to 2048 distinct lengths. Of more, every second (third, …) is tried as a size, counted back from the longest, so
    that a size is at most a few distinct lengths too long.

    Let u₁ < … < u_d be the distinct lengths and N_j the number of sequences up to u_j. A best division of the first j
    into k buckets ends with one of size u_j over those after some i: D(k, j) = min_i D(k − 1, i) + u_j·(N_j − N_i).

    Raises ValueError for no lengths, for a length or `most` below 1, and for lengths that are not whole numbers.
    """
    lengths = _checked_lengths(lengths)
    if most < 1:
        raise ValueError(f"bucket_sizes was given most={most}; give the number of shapes to compile, at least 1.")
    distinct, counts = np.unique(lengths, return_counts=True)
    every = -(-len(distinct) // CANDIDATES)
    chosen = np.arange(len(distinct) - 1, -1, -every)[::-1]
    sizes = np.concatenate([[0], distinct[chosen]])
    upto = np.concatenate([[0], np.cumsum(counts)[chosen]])
    backwards = np.triu(np.full((len(sizes), len(sizes)), np.inf), 1)  # a bucket cannot end before it starts
    padded = sizes[:, None] * (upto[:, None] - upto[None, :]) + backwards
    fewest, starts = padded[:, 0], [np.zeros(len(sizes), np.int64)]
    for _ in range(most - 1):
        total = fewest[None, :] + padded
        starts.append(np.argmin(total, axis=1))
        fewest = total.min(axis=1)
    end, found = len(sizes) - 1, set()
    for start in reversed(starts):
        found.add(int(sizes[end]))
        end = start[end]
    return tuple(sorted(found - {0}))


def padding_ratio(lengths: ArrayLike, sizes: Sequence[int]) -> float:
    """Return padded ÷ valid steps of sequences in buckets of these sizes; 1 where nothing is padded.

    Padding all to the longest is `sizes=[max(lengths)]`. Raises ValueError as `bucket_sizes` does, and for a length
    that no size holds.
    """
    lengths = _checked_lengths(lengths)
    return float(sum(bucket.size * len(bucket.places) for bucket in divide(lengths, sizes)) / lengths.sum())


def divide(lengths: ArrayLike, sizes: Sequence[int]) -> tuple[Bucket, ...]:
    """Return the buckets that hold a sequence, each sequence in the smallest size that holds it; smallest first.

    Raises ValueError for a length that no size holds.
    """
    lengths, ascending = _checked_lengths(lengths), np.unique(sizes)
    bucket = np.searchsorted(ascending, lengths)
    if (bucket == len(ascending)).any():
        place = int(np.argmax(bucket == len(ascending)))
        raise ValueError(
            f"Sequence {place} has {lengths[place]} steps and the sizes are {tuple(ascending.tolist())}; "
            "the largest size must hold the longest sequence: take bucket_sizes of these lengths, or cut the sequence."
        )
    return tuple(Bucket(int(ascending[b]), np.flatnonzero(bucket == b)) for b in np.unique(bucket))


def batches(
    sequences: Sequence[NDArray[Any]],
    observed: Sequence[NDArray[Any]] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    batch: int = 64,
) -> Iterator[Batch]:
    """Yield every sequence exactly once, in batches of one shape per bucket: at most `len(sizes)` shapes in all.

    A sequence is `(steps, rows, channels)` with its own number of steps; observed holds flags of the same shapes, by
    default all true. sizes are by default the `bucket_sizes` of the lengths; who keeps them from night to night keeps
    the shapes too, and with them what was compiled.

    Raises ValueError for a sequence of another rank, without a step, with other rows or channels than the first, or
    longer than the largest size, and for flags that do not fit.
    """
    _check(sequences, observed)
    if batch < 1:
        raise ValueError(f"batches was given batch={batch}; give the number of sequences in a batch, at least 1.")
    if not len(sequences):
        return
    lengths = [len(sequence) for sequence in sequences]
    for bucket in divide(lengths, bucket_sizes(lengths) if sizes is None else sizes):
        for start in range(0, len(bucket.places), batch):
            yield _batch(sequences, observed, bucket.places[start : start + batch], (batch, bucket.size))


def run(
    model: Callable[[Values, Flags, Flags], ArrayLike],
    sequences: Sequence[NDArray[Any]],
    observed: Sequence[NDArray[Any]] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    batch: int = 64,
) -> list[NDArray[Any]]:
    """Return the model's result for every sequence, in the order given: `(steps, …)` of its own length.

    model takes values, observed and mask of a `Batch`, and returns `(batch, size, rows, …)`, of which a sequence gets
    its own steps, or `(batch, rows, …)`, one rank less, of which it gets its own place. With a model that keeps to its
    mask these are the numbers that padding to the longest gives. Raises ValueError as `batches` does.
    """
    results: list[Any] = [None] * len(sequences)
    for part in batches(sequences, observed, sizes=sizes, batch=batch):
        out = np.asarray(model(part.values, part.observed, part.mask))
        for place, result in zip(part.places, out, strict=False):
            results[place] = result[: len(sequences[place])] if out.ndim == part.values.ndim else result
    return results


def _batch(
    sequences: Sequence[NDArray[Any]], observed: Sequence[NDArray[Any]] | None, places: Places, shape: tuple[int, int]
) -> Batch:
    values = np.zeros((*shape, *sequences[0].shape[1:]), np.float32)
    flags = np.zeros(values.shape, bool)
    for row, place in enumerate(places):
        length = len(sequences[place])
        values[row, :length] = sequences[place]
        flags[row, :length] = True if observed is None else observed[place]
    return Batch(values, flags, np.asarray(flags.any(axis=-1)), places)


def _checked_lengths(lengths: ArrayLike) -> Places:
    """Return lengths as int64; raise ValueError unless they are whole numbers from 1, at least one of them."""
    given = np.asarray(lengths)
    if given.ndim != 1 or not given.size or not np.issubdtype(given.dtype, np.integer) or given.min() < 1:
        raise ValueError(
            f"bucket_sizes was given lengths of shape {given.shape} and type {given.dtype} that begin "
            f"{given.ravel()[:3].tolist()}, but it needs (n,) of whole numbers from 1, one for each sequence: drop "
            "empty sequences."
        )
    return given.astype(np.int64)


def _check(sequences: Sequence[NDArray[Any]], observed: Sequence[NDArray[Any]] | None) -> None:
    """Raise ValueError for the first sequence that cannot share a batch with the first one."""
    wanted = "(steps, rows, channels)"
    for place, sequence in enumerate(sequences):
        shape = np.shape(sequence)
        if len(shape) != 3:
            _refuse(place, shape, wanted, "add the missing axis (one row, or one channel) or cut it into rows")
        if 0 in shape:
            _refuse(place, shape, f"{wanted} with at least one of each", "drop empty sequences")
        if shape[1:] != np.shape(sequences[0])[1:]:
            wanted_rows = "(steps, {}, {})".format(*np.shape(sequences[0])[1:])
            _refuse(place, shape, f"{wanted_rows} as sequence 0", "run sequences of other rows or channels apart")
    if observed is None:
        return
    if len(observed) != len(sequences):
        raise ValueError(
            f"batches was given observed for {len(observed)} of {len(sequences)} sequences, but it needs one for each: "
            "give flags for each one, or None."
        )
    for place, (sequence, flags) in enumerate(zip(sequences, observed, strict=True)):
        if np.shape(flags) != np.shape(sequence):
            wanted = str(np.shape(sequence))
            _refuse(place, np.shape(flags), wanted, "give a flag for each cell", "observed for sequence")


def _refuse(place: int, shape: tuple[int, ...], wanted: str, cure: str, what: str = "sequence") -> None:
    raise ValueError(f"batches was given {what} {place} of shape {shape}, but it needs {wanted}: {cure}.")
