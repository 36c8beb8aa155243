"""Robust scaling per channel and entity, learned once and kept with the detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

# An entity's own centre and scale count as much as everybody's when it has this many observed steps.
PRIOR_STEPS = 64
# A channel's scale is at least this share of what all entities show together, so that an entity's constant is no zero.
FLOOR = 0.01


@dataclass(frozen=True, slots=True)
class RobustScaler:
    """Centre and scale per entity and channel, shrunk towards those of all entities.

    entities: name to row of the tables below; row 0 is for entities that were not there to learn from
    center, scale: `(entities + 1, channels)` float64, in the channels' own units
    """

    entities: Mapping[str, int]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def learn(
        cls, values: NDArray[np.float32], observed: NDArray[np.bool_], entity: NDArray[np.int64], names: Sequence[str]
    ) -> "RobustScaler":
        """Learn from the observed cells of `values` `(n, channels)`; `entity` `(n,)` indexes `names`.

        The centre is the median, the scale half the distance from the 16th to the 84th percentile (one standard
        deviation of normal data). An entity with n observed steps has the weight n / (n + k) in its own estimate
        (shrinkage, as in Efron and Morris 1975): k is 64 for the variance, and for the centre the less the further
        the entities lie apart.
        """
        channels = [_learn(values[:, c], observed[:, c], entity) for c in range(values.shape[1])]
        center = np.stack([channel[0] for channel in channels], axis=1)
        scale = np.stack([channel[1] for channel in channels], axis=1)
        return cls({names[code]: row + 1 for row, code in enumerate(np.unique(entity))}, center, scale)

    def widened(self, by: NDArray[np.float64], names: Sequence[str]) -> "RobustScaler":
        """The same with scales that hold `by` `(names, channels)` as well, as variances add up.

        `by` is in the values' units; an entity that was never learned has the root mean square of all.
        """
        table = np.zeros_like(self.scale)
        table[0] = np.sqrt(np.mean(by**2, axis=0)) if len(by) else 0.0
        for name, own in zip(names, by, strict=True):
            table[self.entities.get(name, 0)] = own if name in self.entities else table[0]
        return replace(self, scale=np.hypot(self.scale, table))

    def rows(self, entity: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.int64]:
        """For each step the row of `center` and `scale` that serves its entity, 0 for one never learned."""
        return np.array([self.entities.get(name, 0) for name in names], np.int64)[entity]

    def transform(
        self, values: NDArray[np.float32], observed: NDArray[np.bool_], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """`(value - center) / scale` as float32, 0 where not observed; `rows` as `rows()` gives them."""
        scaled = (values - self.center[rows]) / self.scale[rows]
        return np.where(observed, scaled, 0).astype(np.float32)

    def inverse(self, scaled: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scaled values `(n, channels)` back in the channels' own units."""
        return scaled * self.scale[rows] + self.center[rows]


def _learn(
    values: NDArray[np.float32], observed: NDArray[np.bool_], entity: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre and scale of one channel: everybody's first, then each entity's (in order of code), shrunk to it."""
    frame = pl.DataFrame({"entity": entity, "value": values}).filter(pl.Series(observed))
    value = pl.col("value").cast(pl.Float64)
    spread = (value.quantile(0.8413, "linear") - value.quantile(0.1587, "linear")) / 2
    own = frame.group_by("entity").agg(value.median().alias("center"), spread.alias("spread"), pl.len().alias("n"))
    own = pl.DataFrame({"entity": np.unique(entity)}).join(own, on="entity", how="left", maintain_order="left")
    own = own.with_columns(pl.col("n").fill_null(0).cast(pl.Float64), pl.col("center", "spread").fill_null(0.0))
    whole = frame.select(median=value.median(), spread=spread, deviation=value.std(), level=value.abs().median())
    median, overall, deviation, level = (float(x or 0.0) for x in whole.row(0))
    # What one entity shows by itself, not what sets entities of different levels apart.
    n, centers, spreads = (own[name].to_numpy() for name in ("n", "center", "spread"))
    within = float(np.sqrt((spreads**2 * n).sum() / max(float(n.sum()), 1.0)))
    common = next((scale for scale in (within, overall, deviation, 1e-3 * level) if scale > 0), 1e-6)
    between = float(np.average((centers - median) ** 2, weights=n)) if n.sum() else 0.0
    # Entities whose levels lie far apart, measured by their own spread, say little about one another.
    prior = PRIOR_STEPS * common**2 / (common**2 + between)
    center = (n * centers + prior * median) / (n + prior)
    variance = (n * spreads**2 + PRIOR_STEPS * common**2) / (n + PRIOR_STEPS)
    floor = FLOOR * max(overall or deviation, common)
    return np.r_[median, center], np.maximum(np.r_[common, np.sqrt(variance)], floor)
