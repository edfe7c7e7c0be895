"""A simulated storefront: shoppers with drifting interests look, compare, fill carts and buy; seeded, without end.

What it holds to be learnt, beyond what the last product tells: a shopper's taste in brands, colours and prices runs
through all categories; interests drift over days; who bought a tent needs a sleeping bag, of the same range if
possible, in this visit or the next; a cart is paid for at the end, and one left behind calls its shopper back.
"""

import heapq
import math
from bisect import bisect
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from stream_rec.data.simulator.assortment import CATEGORIES, COLOURS, Assortment, assortment
from stream_rec.errors import UserError
from stream_rec.messages import Event, Item

START = 1_767_225_600.0
"""The first of January 2026, in seconds since 1970."""
HOUR = 3_600.0
DAY = 24 * HOUR

LEAVES = 0.11
"""Probability that a visit ends after a view: some nine views a visit."""
PAYS = 0.6
"""That what is in the cart at the end of a visit is bought."""
CALLS_BACK = 0.5
"""That a cart left behind opens the next visit; in the same way, what goes with the last purchase."""

_Step = tuple[float, str, int]
"""Time in seconds, event type, number of the product."""


MOST_SHOPPERS = 1_000_000
"""All of them are in memory."""


class Storefront:
    """A shop, its shoppers and what they do. The same arguments give the same items and the same events.

    `start` is the opening, in seconds since 1970. 2,000 shoppers make some 8,000 events a day. Raises `UserError` for
    a negative seed, and for fewer or more products and shoppers than make a shop.
    """

    def __init__(self, seed: int = 0, products: int = 600, shoppers: int = 2_000, start: float = START) -> None:
        if seed < 0:
            raise UserError(f"the storefront's seed is {seed}: give 0 or more")
        if not 1 <= shoppers <= MOST_SHOPPERS:
            raise UserError(f"the storefront has {shoppers} shoppers: give 1 to {MOST_SHOPPERS:,}")
        self._seed, self._shoppers, self._start = seed, shoppers, start
        rng = np.random.default_rng([seed, 0])
        self._goods = assortment(products, rng)
        self._demand = _Demand(products, rng)

    @property
    def items(self) -> list[Item]:
        """The catalogue."""
        return self._goods.items

    def events(self) -> Iterator[Event]:
        """Everybody's events in the order of time, from the opening on, without end; each call begins anew."""
        shoppers = (
            _Shopper(f"u{number:06d}", self._goods, self._demand, np.random.default_rng([self._seed, number]))
            for number in range(1, self._shoppers + 1)
        )
        return heapq.merge(*(shopper.events(self._start) for shopper in shoppers), key=lambda event: event.timestamp)


class _Demand:
    """How much every product is wanted by all: skewed, and slowly up and down."""

    def __init__(self, products: int, rng: np.random.Generator) -> None:
        self._level = rng.normal(0, 0.7, products)
        self._swing = rng.uniform(0, 0.8, products)
        self._pace = 2 * math.pi / rng.uniform(10 * DAY, 60 * DAY, products)
        self._phase = rng.uniform(0, 2 * math.pi, products)

    def at(self, time: float, shelf: slice = slice(None)) -> NDArray[np.float64]:
        """The log of the demand for the products of `shelf`."""
        wave: NDArray[np.float64] = np.sin(time * self._pace[shelf] + self._phase[shelf])
        return self._level[shelf] + self._swing[shelf] * wave


class _Shopper:
    """Goes from visit to visit; keeps a taste, interests, the kind of product needed next in each category, a cart."""

    def __init__(self, name: str, goods: Assortment, demand: _Demand, rng: np.random.Generator) -> None:
        self._name, self._goods, self._demand, self._rng = name, goods, demand, rng
        self._chance = _uniforms(rng)
        brands, colours = rng.normal(0, 1.8, len(goods.brands)), rng.normal(0, 1.4, len(COLOURS))
        self._taste = brands[goods.brand] + colours[goods.colour] - 24 * (goods.level - rng.beta(2, 2)) ** 2
        self._character = rng.normal(0, 1.2, len(CATEGORIES))
        self._interest = self._character + rng.normal(0, 1.0, len(CATEGORIES))
        self._need = [int(rng.integers(len(category.kinds))) for category in CATEGORIES]
        self._pause = 3 * DAY * rng.lognormal(0, 0.7)
        self._cart: list[int] = []
        self._recalled: int | None = None
        self._favourites: list[int] = []

    def events(self, time: float) -> Iterator[Event]:
        """Everything this shopper does after `time` (seconds), in order, without end."""
        for number, (when, kind, product) in enumerate(self._steps(time), 1):
            item = self._goods.items[product]
            yield Event(self._name, kind, round(when, 3), item.item_id, f"{self._name}-{number}", item.price)

    def _steps(self, time: float) -> Iterator[_Step]:
        while True:
            time += self._exponential(self._pause)
            while next(self._chance) > _awake(time):
                time += self._exponential(2 * HOUR)
            for step in self._visit(time):
                time = step[0]
                yield step

    def _visit(self, time: float) -> Iterator[_Step]:
        """One session: views, some of them put into the cart, and perhaps a checkout at the end."""
        product = self._arrive(time)
        aims = [self._goods.category[product], *(_draw(np.exp(self._interest), next(self._chance)) for _ in range(2))]
        picks = [self._picker(time, self._goods.shelves[category]) for category in aims]
        seen: list[int] = []
        while True:
            if product not in seen:
                seen.append(product)
            yield time, "view", product
            wished = next(self._chance) < self._wish(product)
            if wished and product not in self._cart:
                time += 3 + self._exponential(15)
                self._cart.append(product)
                yield time, "cart", product
            if next(self._chance) < LEAVES:
                break
            time += 4 + self._exponential(40)
            product = self._onward(product, seen, picks[bisect((0.4, 0.7), next(self._chance))], wished, time)
        if self._cart and next(self._chance) < PAYS:
            time += 20 + self._exponential(60)
            for bought in self._cart:
                yield time, "purchase", bought
                time += 0.5
                self._own(bought)
            self._cart.clear()
        self._remember(seen)
        self._drift()

    def _arrive(self, time: float) -> int:
        """The first product of a visit: from the cart left behind, a partner of the last purchase, or a new wish."""
        if self._cart and next(self._chance) < CALLS_BACK:
            return self._cart[-1]
        if self._recalled is not None and next(self._chance) < CALLS_BACK:
            product, self._recalled = self._recalled, None
            return product
        category = _draw(np.exp(self._interest), next(self._chance))
        return self._picker(time, self._goods.shelves[category])()

    def _picker(self, time: float, shelf: slice) -> Callable[[], int]:
        """Draws products of `shelf` as this shopper likes and needs them."""
        goods = self._goods
        needed = goods.kind[shelf] == self._need[goods.category[shelf.start]]
        weights = np.cumsum(np.exp(self._demand.at(time, shelf) + self._taste[shelf] + 0.7 * needed)).tolist()
        return lambda: shelf.start + bisect(weights, next(self._chance) * weights[-1], hi=len(weights) - 1)

    def _onward(self, product: int, seen: list[int], pick: Callable[[], int], wished: bool, time: float) -> int:
        """The product looked at next: a partner of this one, one seen before, what is in demand, or a fresh one."""
        chance, which = next(self._chance), next(self._chance)
        partners = self._goods.partners[product]
        if chance < (0.4 if wished else 0.06):
            return int(partners[bisect((0.6, 0.85), which)])
        following = product
        if 0.70 < chance < 0.82 and self._favourites:
            following = self._favourites[int(which * len(self._favourites))]
        elif 0.82 < chance < 0.95:
            following = seen[int(which * len(seen))]
        elif chance > 0.95:
            following = _draw(np.exp(self._demand.at(time)), which)
        if following != product:
            return following
        return next((fresh for _ in range(8) if (fresh := pick()) not in seen), int(partners[0]))

    def _wish(self, product: int) -> float:
        """The probability that a product that is looked at goes into the cart."""
        return 0.02 + 0.2 / (1 + math.exp(3.0 - self._taste[product]))

    def _remember(self, seen: list[int]) -> None:
        """The best liked of this visit is looked at again in later ones; old favourites are forgotten."""
        best = max(seen, key=lambda product: self._taste[product])
        if best not in self._favourites:
            self._favourites = [*self._favourites[-4:], best]

    def _own(self, bought: int) -> None:
        """A purchase moves the need on to the next kind of its category, and leaves a thought for another visit."""
        category = int(self._goods.category[bought])
        self._need[category] = (int(self._goods.kind[bought]) + 1) % len(CATEGORIES[category].kinds)
        self._interest[category] += 0.8
        self._recalled = int(self._goods.partners[bought, 0])

    def _drift(self) -> None:
        """Interests wander, and come back to the shopper's character over some ten visits."""
        noise = self._rng.normal(0, 0.5, len(CATEGORIES))
        self._interest += 0.1 * (self._character - self._interest) + noise

    def _exponential(self, mean: float) -> float:
        return -mean * math.log(1 - next(self._chance))


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Numbers in [0, 1), drawn in blocks: one by one they would cost most of the time."""
    while True:
        yield from rng.random(128).tolist()


def _draw(weights: NDArray[np.float64], chance: float) -> int:
    """The number of one of `weights`, as likely as its weight, by a chance in [0, 1)."""
    total = np.cumsum(weights)
    return min(int(np.searchsorted(total, chance * total[-1], side="right")), len(total) - 1)


def _awake(time: float) -> float:
    """The share of shoppers who are up at this time of day: least at 4, most at 16 hours."""
    return 0.55 - 0.45 * math.cos(2 * math.pi * ((time % DAY) / DAY - 4 / 24))
