"""Holders of payment cards with habits of their own: one row a payment.

What follows from knowledge: payments of one holder come as a Poisson process with a daily and weekly rhythm, amounts
are lognormal around a holder's own mean, a few favourite merchants take most visits, and distances from home are
short and heavy-tailed. The frauds follow what card schemes describe: a stolen card is spent fast and far from home;
cards that were copied at one terminal pay somewhere else days later; a list of card numbers is tried with tiny online
charges; a thief feels for the limit with growing amounts.

What is invention: every number (rates, means, shares, hours), the map (regions of 500 holders with a dozen terminals
for each category, and one pool of terminals abroad), that clones hit only cards that are regulars of the copying
terminal's shop, that a card goes on being used after a fraud, and that a fraud ends on the same day. Journeys, rare
large purchases and unknown shops are planted as normal, so that no single limit finds the frauds.
"""

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.simulate.plan import (
    FIRST_HOUR,
    LAST_HOUR,
    Choice,
    Day,
    Floats,
    Integers,
    Planted,
    day_after,
    midnight,
    stream,
)  # fmt: skip

KINDS = ("stolen_card", "compromised_terminal", "test_charges", "limit_probing")
TOUCHES = {
    "stolen_card": ("amount", "category", "terminal", "distance"),
    "compromised_terminal": ("amount", "category", "terminal", "distance"),
    "test_charges": ("amount", "terminal", "distance"),
    "limit_probing": ("amount", "terminal"),
}
# Category: share of payments, usual amount (EUR), spread of its logarithm, two hours around which it happens.
CATEGORIES = {
    "groceries": (0.30, 28, 0.6, 11.0, 17.5),
    "restaurant": (0.16, 22, 0.5, 12.5, 19.5),
    "transport": (0.13, 6, 0.5, 7.5, 17.0),
    "fuel": (0.07, 55, 0.3, 8.0, 17.5),
    "clothing": (0.06, 60, 0.6, 13.0, 16.5),
    "health": (0.05, 25, 0.7, 10.0, 15.0),
    "leisure": (0.06, 30, 0.7, 16.0, 20.0),
    "electronics": (0.03, 140, 0.8, 13.0, 17.0),
    "cash": (0.04, 90, 0.5, 10.0, 18.0),
    "online": (0.10, 35, 0.8, 13.0, 21.0),
}
NAMES = tuple(CATEGORIES)
ONLINE, GROCERIES = NAMES.index("online"), NAMES.index("groceries")
QUICK_CASH = (NAMES.index("electronics"), NAMES.index("cash"), NAMES.index("clothing"))
REGION = 500  # holders
SHOPS = 12  # terminals of a category in a region
ABROAD = 40  # terminals of a category abroad
SHOPS_ONLINE, SHOPS_ODD = 150, 60  # usual online terminals, and odd ones that few ever use
FAVOURITES = (0.55, 0.30, 0.15)  # how often a holder goes to the first, second and third
EXPLORES = 0.10  # share of payments at no favourite
ODD_ONLINE = 0.02  # share of online payments at an odd terminal
JOURNEYS = 0.06  # holders that go on a journey in a week
LARGE = 0.004  # share of payments that are four to ten times as large
NO_DISTANCE = 0.01  # share of payments whose terminal gives no place
WEEK = (0.95, 0.92, 0.97, 1.0, 1.15, 1.25, 0.76)
ISSUED_LATE, LAST_ISSUE = 0.2, 60  # share of cards issued during the first days, and the last such day
REGULAR_FOR = 7  # days that a card must have before a terminal can have copied it
FARTHEST = 20_000.0  # km
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Holders:
    """The holders' habits; first axis: holder."""

    rate: Floats  # payments a day, (holders,)
    weekly: Floats  # factor by weekday, (holders, 7)
    mix: Floats  # shares of the categories, (holders, categories)
    mean: Floats  # log of how much more or less than usual the holder pays, (holders,)
    spread: Floats  # factor on the spread of amounts, (holders,)
    shift: Floats  # hours, how much earlier or later, (holders,)
    radius: Floats  # km around home, (holders,)
    region: Integers  # (holders,)
    shops: Integers  # favourite terminals, (holders, categories, 3)
    away: Floats  # km to them, (holders, categories, 3)
    issued: Integers  # first day with payments, (holders,); 0 for cards that are older than the history


@dataclass(frozen=True, slots=True)
class Payments:
    """Payments of a day before they are sorted: arrays of one length."""

    card: Integers
    second: Integers  # of the day
    amount: Floats  # EUR
    category: Integers
    terminal: Integers
    distance: Floats  # km from home
    kind: Integers  # 0 normal, else 1 + position in KINDS


@dataclass(frozen=True, slots=True)
class Fraud:
    """The payments of one planted fraud, and the terminal that copied the card (-1: none)."""

    payments: Payments
    origin: int


@dataclass(frozen=True, slots=True)
class Towns:
    """The map: which numbers the terminals have."""

    regions: int

    @property
    def abroad(self) -> int:
        """The first terminal abroad."""
        return self.regions * len(NAMES) * SHOPS

    @property
    def online(self) -> int:
        """The first online terminal; the odd ones follow the usual ones."""
        return self.abroad + len(NAMES) * ABROAD

    @property
    def terminals(self) -> int:
        """How many terminals there are."""
        return self.online + SHOPS_ONLINE + SHOPS_ODD

    def local(self, region: Integers, category: Integers, rng: np.random.Generator) -> Integers:
        """A shop of the category in the region; an online shop where the category is online; odd ones now and then."""
        size = np.broadcast_shapes(region.shape, category.shape)
        shop = (region * len(NAMES) + category) * SHOPS + rng.integers(0, SHOPS, size)
        usual = self.online + rng.integers(0, SHOPS_ONLINE, size)
        online = np.where(rng.random(size) < ODD_ONLINE / EXPLORES, self.odd(size, rng), usual)
        return np.where(category == ONLINE, online, shop)

    def foreign(self, category: Integers, rng: np.random.Generator) -> Integers:
        """A shop of the category abroad."""
        return self.abroad + category * ABROAD + rng.integers(0, ABROAD, category.shape)

    def odd(self, size: tuple[int, ...], rng: np.random.Generator) -> Integers:
        """An online terminal that few ever use."""
        return self.online + SHOPS_ONLINE + rng.integers(0, SHOPS_ODD, size)


def build_holders(cards: int, seed: int, towns: Towns) -> Holders:
    """`cards` holders: 0.5 to 10 payments a day (2.5 on average), short and long histories."""
    rng = stream(seed, "cards/holders")
    share, *_ = zip(*CATEGORIES.values(), strict=True)
    mix = rng.gamma(6 * np.array(share), size=(cards, len(NAMES))) + 0.002
    weekly = np.array(WEEK) * rng.lognormal(0, 0.2, (cards, 7))
    region = np.arange(cards) // REGION
    radius = rng.lognormal(np.log(4), 0.6, cards)
    size = (cards, len(NAMES), len(FAVOURITES))
    category = np.arange(len(NAMES))[None, :, None]
    shops = (region[:, None, None] * len(NAMES) + category) * SHOPS + rng.integers(0, SHOPS, size)
    shops[:, ONLINE] = towns.online + rng.integers(0, SHOPS_ONLINE, size[::2])
    late = rng.random(cards) < ISSUED_LATE
    return Holders(
        rate=np.clip(rng.lognormal(np.log(2.2), 0.5, cards), 0.5, 10),
        weekly=weekly / weekly.mean(axis=1, keepdims=True), mix=mix / mix.sum(axis=1, keepdims=True),
        mean=rng.normal(0, 0.35, cards), spread=rng.uniform(0.6, 1.1, cards), shift=rng.normal(0, 0.8, cards),
        radius=radius, region=region, shops=shops, away=radius[:, None, None] * rng.lognormal(0, 0.6, size),
        issued=np.where(late, rng.integers(1, LAST_ISSUE, cards), 0),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cards:
    """The simulator of card payments; makes any day by itself."""

    seed: int
    start: date
    holders: Holders
    towns: Towns
    names: pl.Series
    entity: ClassVar[str] = "card"
    event_id: ClassVar[str | None] = "payment"
    ending: ClassVar[str] = ".csv.gz"
    ways_to_break: ClassVar[int] = 7

    @classmethod
    def build(cls, cards: int, seed: int, start: date) -> "Cards":
        """`cards` cards named card-000001 and so on."""
        towns = Towns(-(-cards // REGION))
        width = max(6, len(str(cards)))
        names = pl.Series("card", [f"card-{number + 1:0{width}}" for number in range(cards)])
        return cls(seed, start, build_holders(cards, seed, towns), towns, names)

    def day(self, index: int, chosen: Choice) -> Day:
        """The payments of day `index`, in the order of time; columns as in the files, and kind.

        An id holds the day and the payment's position in it, so that a planted fraud gives away nothing.
        """
        frauds = plan_frauds(self.holders, self.towns, self.seed, index, chosen)
        payments = _join([self._normal(index), *(fraud.payments for fraud in frauds)])
        return Day(self._frame(index, payments), tuple(self._planted(index, fraud) for fraud in frauds))

    def _normal(self, index: int) -> Payments:
        """What the holders pay on day `index`."""
        holders, rng = self.holders, stream(self.seed, "cards/day", index)
        weekday = day_after(self.start, index).weekday()
        counts = rng.poisson(holders.rate * holders.weekly[:, weekday] * (holders.issued <= index))
        card = np.repeat(np.arange(len(counts)), counts)
        category = _draw_category(holders.mix, counts, rng)
        terminal, distance = _places(holders, self.towns, card, category, rng)
        terminal, distance = self._travel(index, card, category, terminal, distance)
        distance[rng.random(len(card)) < NO_DISTANCE] = np.nan
        return Payments(
            card, _seconds(holders.shift[card], category, rng), _amounts(holders, card, category, rng), category,
            terminal, distance, np.zeros(len(card), np.int8),
        )  # fmt: skip

    def _travel(
        self, index: int, card: Integers, category: Integers, terminal: Integers, distance: Floats
    ) -> tuple[Integers, Floats]:
        """Terminals and distances of the day, where those who are on a journey pay abroad."""
        week, day = divmod(index, 7)
        rng = stream(self.seed, "cards/journeys", week)
        cards = len(self.names)
        first, length = rng.integers(0, 5, cards), rng.integers(1, 5, cards)
        gone = (rng.random(cards) < JOURNEYS) & (first <= day) & (day < first + length)
        how_far = np.exp(rng.uniform(np.log(120), np.log(3000), cards))
        rng = stream(self.seed, "cards/abroad", index)
        there = how_far[card] * rng.uniform(0.97, 1.03, len(card))
        moves = gone[card] & (category != ONLINE)
        foreign = self.towns.foreign(category, rng)
        return np.where(moves, foreign, terminal), np.where(gone[card], there, distance)

    def _frame(self, index: int, payments: Payments) -> pl.DataFrame:
        today = day_after(self.start, index)
        order = np.lexsort((payments.card, payments.second))
        words = pl.Series([None, *KINDS], dtype=pl.String)
        start = np.datetime64(today, "us")
        number = pl.int_range(len(order), dtype=pl.Int64, eager=True).cast(pl.String).str.zfill(7)
        return pl.DataFrame(
            {
                "payment": f"{today:%Y%m%d}-" + number,
                "card": self.names.gather(payments.card[order]),
                "time": pl.Series(start + payments.second[order].astype("timedelta64[s]")).dt.replace_time_zone("UTC"),
                "amount": payments.amount[order],
                "category": pl.Series(NAMES).gather(payments.category[order]),
                "terminal": self._terminals(payments.terminal[order]),
                "distance": pl.Series(np.round(payments.distance[order], 1)).fill_nan(None),
                "kind": words.gather(payments.kind[order]),
            }
        )

    def _terminals(self, numbers: Integers) -> pl.Series:
        """The terminals' names, such as T000123."""
        known = pl.int_range(self.towns.terminals, dtype=pl.Int64, eager=True).cast(pl.String).str.zfill(6)
        return ("T" + known).gather(numbers)

    def _planted(self, index: int, fraud: Fraud) -> Planted:
        base, payments = midnight(day_after(self.start, index)), fraud.payments
        first, last = (base + timedelta(seconds=int(at)) for at in (payments.second.min(), payments.second.max()))
        kind = KINDS[int(payments.kind[0]) - 1]
        origin = None if fraud.origin < 0 else f"T{fraud.origin:06d}"
        card = str(self.names[int(payments.card[0])])
        return Planted(base.date(), card, kind, first, last, len(payments.card), TOUCHES[kind], origin)

    def spoil(self, frame: pl.DataFrame, rows: list[int]) -> dict[str, pl.DataFrame]:
        """Seven rows broken in place, one cell each; all columns are texts then, as a CSV holds nothing else."""
        wrong = (
            ("card", None), ("time", "2026-02-30T25:61:00Z"), ("amount", "12,5O EUR"), ("amount", "-25.0"),
            ("amount", "9999999999.0"), ("distance", "inf"), ("distance", "-40.0"),
        )  # fmt: skip
        texts = frame.with_columns(_time_texts(frame["time"])).cast(pl.String)
        for row, (column, value) in zip(rows, wrong, strict=False):
            texts = texts.with_columns(
                pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
            )
        return {"": texts}

    def write(self, frame: pl.DataFrame, file: Path) -> None:
        """Write the payments as a gzipped CSV, times as 2026-03-02T09:12:33Z."""
        texts = frame if frame.schema["time"] == pl.String else frame.with_columns(_time_texts(frame["time"]))
        texts.write_csv(file, compression="gzip", compression_level=1, check_extension=False)


def _time_texts(times: pl.Series) -> pl.Series:
    """Times (UTC) as ISO texts with Z."""
    seconds = (times - times.dt.truncate("1d")).dt.total_seconds()
    return (times.dt.date().cast(pl.String) + _clock().gather(seconds)).alias(times.name)


@cache
def _clock() -> pl.Series:
    """The text of every second of a day: looking one up is ten times as fast as writing it."""
    first = pl.datetime(2000, 1, 1)
    return pl.datetime_range(first, first.dt.offset_by("1d"), "1s", closed="left", eager=True).dt.strftime("T%H:%M:%SZ")


def _draw_category(mix: Floats, counts: Integers, rng: np.random.Generator) -> Integers:
    """A category for each payment, by its holder's shares."""
    edges = np.cumsum(mix, axis=1)[:, :-1].astype(np.float32)
    drawn = rng.random(int(counts.sum()), dtype=np.float32)
    return (np.repeat(edges, counts, axis=0) < drawn[:, None]).sum(axis=1)


def _places(
    holders: Holders, towns: Towns, card: Integers, category: Integers, rng: np.random.Generator
) -> tuple[Integers, Floats]:
    """Where each payment happens, and how far from home: mostly at a favourite, else anywhere in the region."""
    slot = np.searchsorted(np.cumsum(FAVOURITES)[:-1], rng.random(len(card)))
    explores = rng.random(len(card)) < EXPLORES
    terminal = np.where(explores, towns.local(holders.region[card], category, rng), holders.shops[card, category, slot])
    farther = holders.radius[card] * rng.lognormal(0.7, 0.8, len(card))
    distance = np.where(explores, farther, holders.away[card, category, slot] * rng.lognormal(0, 0.1, len(card)))
    at_home = rng.exponential(0.5, len(card))
    return terminal, np.minimum(np.where(category == ONLINE, at_home, distance), FARTHEST)


def _amounts(holders: Holders, card: Integers, category: Integers, rng: np.random.Generator) -> Floats:
    """Euros and cents: lognormal around the holder's own mean for the category, rarely several times as much."""
    _, usual, spread, *_ = (np.array(column) for column in zip(*CATEGORIES.values(), strict=True))
    noise = rng.standard_normal(len(card)) * spread[category] * holders.spread[card]
    large = np.where(rng.random(len(card)) < LARGE, rng.uniform(4, 10, len(card)), 1)
    return _cents(usual[category] * np.exp(holders.mean[card] + noise) * large)


def _seconds(shift: Floats, category: Integers, rng: np.random.Generator) -> Integers:
    """The second of the day: around one of the category's two hours, moved by the holder's habit."""
    *_, early, late = (np.array(column) for column in zip(*CATEGORIES.values(), strict=True))
    hours = np.where(rng.random(len(shift)) < 0.5, early[category], late[category]) + shift
    return ((hours * 3600 + rng.normal(0, 5400, len(shift))) % DAY).astype(np.int64)


def _cents(amounts: Floats) -> Floats:
    return np.round(np.clip(amounts, 0.5, 50_000), 2)


def _join(parts: list[Payments]) -> Payments:
    names = Payments.__slots__
    return Payments(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def plan_frauds(holders: Holders, towns: Towns, seed: int, day: int, chosen: Choice) -> list[Fraud]:
    """The day's frauds on cards that are in use.

    A compromised terminal counts once and yields a fraud for each victim; a card too young for it is stolen instead.
    """
    rng = stream(seed, "cards/frauds", day)
    cards = chosen.entities[holders.issued[chosen.entities] <= day]
    frauds: list[Fraud] = []
    old_enough = holders.issued <= max(day - REGULAR_FOR, 0)
    regular = np.zeros(len(old_enough), bool)
    regular[cards[chosen.count :]] = old_enough[cards[chosen.count :]]
    for position, card in enumerate(cards[: chosen.count]):
        kind = chosen.kind(position, KINDS)
        if kind == "compromised_terminal" and old_enough[card]:
            clones = _clones(holders, towns, int(card), regular, rng)
            regular[[fraud.payments.card[0] for fraud in clones]] = False
            frauds += clones
        else:
            frauds.append(Fraud(SCENES.get(kind, _stolen_card)(holders, towns, int(card), rng), -1))
    return frauds


def _starts(length: int, rng: np.random.Generator) -> int:
    """A second at which something of `length` seconds may start, within the hours that keep clear of midnight."""
    return int(rng.integers(FIRST_HOUR * 3600, LAST_HOUR * 3600 - length))


def _spaced(count: int, length: int, rng: np.random.Generator) -> Integers:
    """`count` rising seconds within a stretch of `length` seconds."""
    return _starts(length, rng) + np.sort(rng.choice(length, count, replace=False))


def _usual(holders: Holders, card: int, category: Integers) -> Floats:
    """The holder's usual amounts for the categories."""
    return np.array([CATEGORIES[NAMES[each]][1] for each in category]) * float(np.exp(holders.mean[card]))


def _fraud(
    kind: str, card: int, *, second: Integers, amount: Floats, category: Integers, terminal: Integers, distance: Floats
) -> Payments:
    """The payments of one fraud on one card."""
    count = len(second)
    label = np.full(count, 1 + KINDS.index(kind), np.int8)
    return Payments(np.full(count, card), second, _cents(amount), category, terminal, distance, label)


def _stolen_card(holders: Holders, towns: Towns, card: int, rng: np.random.Generator) -> Payments:
    """Five to ten purchases in one to three hours, two to six times as large as usual, in shops that sell on well."""
    count = int(rng.integers(5, 11))
    category = rng.choice(QUICK_CASH, count)
    amount = _usual(holders, card, category) * rng.uniform(2, 6, count)
    distance = rng.uniform(40, 400) * rng.uniform(0.95, 1.05, count)
    second = _spaced(count, int(rng.integers(3600, 3 * 3600)), rng)
    terminal = towns.foreign(category, rng)
    return _fraud("stolen_card", card, second=second, amount=amount, category=category, terminal=terminal,
                  distance=distance)  # fmt: skip


def _clones(
    holders: Holders, towns: Towns, card: int, regular: npt.NDArray[np.bool_], rng: np.random.Generator
) -> list[Fraud]:
    """The card and two to four more regulars of its grocer, if there are any: copied there, they pay far away.

    All pay at the same two terminals within the same two hours.

    The others are drawn from the cards that are `regular`: old enough, and nothing else happens to them on this day.
    """
    grocer = holders.shops[card, GROCERIES, 0]
    town = slice(holders.region[card] * REGION, (holders.region[card] + 1) * REGION)
    others = town.start + np.flatnonzero(regular[town] & (holders.shops[town, GROCERIES, 0] == grocer))
    victims = [card, *rng.permutation(others)[: int(rng.integers(2, 5))]]
    where = towns.foreign(np.array(QUICK_CASH[:2]), rng)
    scene = Scene(where, _starts(2 * 3600, rng), float(np.exp(rng.uniform(np.log(400), np.log(7000)))))
    return [Fraud(_clone(holders, int(each), scene, rng), int(grocer)) for each in victims]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where clones are spent: two terminals, the first of two hours (second of the day), km from home."""

    terminals: Integers
    start: int
    distance: float


def _clone(holders: Holders, card: int, scene: Scene, rng: np.random.Generator) -> Payments:
    """Two to four payments with one cloned card."""
    count = int(rng.integers(2, 5))
    pick = rng.integers(0, len(scene.terminals), count)
    category = np.array(QUICK_CASH)[pick]
    amount = _usual(holders, card, category) * rng.uniform(1.2, 3, count)
    second = scene.start + np.sort(rng.choice(2 * 3600, count, replace=False))
    distance = scene.distance * rng.uniform(0.98, 1.02, count)
    return _fraud("compromised_terminal", card, second=second, amount=amount, category=category,
                  terminal=scene.terminals[pick], distance=distance)  # fmt: skip


def _test_charges(holders: Holders, towns: Towns, card: int, rng: np.random.Generator) -> Payments:
    """Five to nine online charges of 0.50 to 2.50 EUR within a few minutes at one terminal that few ever use."""
    count = int(rng.integers(5, 10))
    category = np.full(count, ONLINE)
    terminal = np.full(count, towns.odd((), rng))
    second = _spaced(count, int(rng.integers(180, 720)), rng)
    distance = rng.uniform(1, 60) * holders.radius[card] * np.ones(count)
    amount = rng.uniform(0.5, 2.5, count)
    return _fraud("test_charges", card, second=second, amount=amount, category=category, terminal=terminal,
                  distance=distance)  # fmt: skip


def _limit_probing(holders: Holders, towns: Towns, card: int, rng: np.random.Generator) -> Payments:
    """Five to eight purchases in a quarter to three quarters of an hour at one shop, each half as large again."""
    count = int(rng.integers(5, 9))
    category = np.full(count, int(rng.choice(QUICK_CASH)))
    amount = _usual(holders, card, category) * rng.uniform(0.5, 0.9) * 1.5 ** np.arange(count)
    terminal = np.repeat(towns.local(holders.region[[card]], category[:1], rng), count)
    distance = holders.radius[card] * rng.uniform(2, 6) * np.ones(count)
    second = _spaced(count, int(rng.integers(900, 2700)), rng)
    amount = amount * rng.uniform(0.95, 1.05, count)
    return _fraud("limit_probing", card, second=second, amount=amount, category=category, terminal=terminal,
                  distance=distance)  # fmt: skip


SCENES = {"stolen_card": _stolen_card, "test_charges": _test_charges, "limit_probing": _limit_probing}
