"""What the simulated storefront sells: categories, brands and product ranges, and what goes with what."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_rec.errors import UserError
from stream_rec.messages import Item


class Category(NamedTuple):
    """A part of the shop. Who buys a thing of one kind soon needs the next kind, of the same range if possible."""

    name: str
    brands: str
    kinds: dict[str, float]
    """Kind of product -> its usual price."""
    series: bool = False
    """The kinds are volumes of one work: no colours, and the next one follows the last."""


CATEGORIES = (
    Category(
        "outdoor.camping",
        "Northpeak Fjordline Embercamp Oakmoor",
        {
            "two-person tent": 180,
            "sleeping bag": 95,
            "camping mat": 60,
            "gas stove": 45,
            "headlamp": 35,
            "cool box": 70,
        },
    ),
    Category(
        "sport.running",
        "Northpeak Velora Striden Kitefoot",
        {"trail running shoes": 120, "running socks": 14, "running jacket": 85, "hydration vest": 75, "arm band": 18},
    ),
    Category(
        "sport.cycling",
        "Velora Cadenza Fjordline Striden",
        {
            "bike helmet": 80,
            "bike light": 40,
            "cycling jersey": 65,
            "bike lock": 55,
            "pannier bag": 70,
            "hand pump": 25,
        },
    ),
    Category(
        "sport.yoga",
        "Solenne Kitefoot Lumora Velora",
        {"yoga mat": 45, "yoga leggings": 60, "yoga block": 15, "meditation cushion": 40, "foam roller": 30},
    ),
    Category(
        "home.kitchen",
        "Castora Oakmoor Hearthby Marlowe",
        {"chef's knife": 75, "cutting board": 35, "frying pan": 60, "casserole": 110, "mixing bowl": 25, "apron": 22},
    ),
    Category(
        "home.coffee",
        "Castora Brewster Hearthby Tazza",
        {"espresso machine": 320, "coffee grinder": 130, "milk jug": 20, "cup set": 30, "coffee scale": 40},
    ),
    Category(
        "home.bedroom",
        "Lumora Solenne Marlowe Hearthby",
        {"duvet": 90, "duvet cover": 55, "pillow": 35, "throw": 45, "bedside lamp": 50, "curtains": 65},
    ),
    Category(
        "home.garden",
        "Oakmoor Fernhill Embercamp Marlowe",
        {"garden spade": 35, "pruning shears": 28, "watering can": 24, "raised bed": 85, "garden gloves": 14},
    ),
    Category(
        "electronics.audio",
        "Sonaris Axiom Tonewell Cadenza",
        {"headphones": 150, "headphone case": 20, "portable speaker": 95, "turntable": 240, "record cleaner": 18},
    ),
    Category(
        "electronics.photography",
        "Axiom Optura Sonaris Fernhill",
        {
            "mirrorless camera": 850,
            "prime lens": 380,
            "camera strap": 35,
            "tripod": 120,
            "camera bag": 85,
            "filter": 45,
        },
    ),
    Category(
        "electronics.desk",
        "Axiom Tonewell Optura Lumora",
        {"mechanical keyboard": 110, "wireless mouse": 60, "desk mat": 28, "monitor arm": 90, "laptop stand": 45},
    ),
    Category(
        "beauty.skincare",
        "Solenne Fernhill Aquarelle Tazza",
        {"cleansing gel": 16, "toner": 18, "face serum": 32, "day cream": 28, "night cream": 34, "lip balm": 7},
    ),
    Category(
        "books.fantasy",
        "Marsh Okafor Lindqvist Brewster",
        {"volume 1": 12, "volume 2": 12, "volume 3": 13, "volume 4": 13, "volume 5": 14, "volume 6": 14},
        series=True,
    ),
)

LINES = (
    *("Ridge", "Alto", "Vela", "Tarn", "Copper", "Drift", "Willow", "Summit", "Harbour", "Ember", "Lark", "Cove"),
    *("Granite", "Meadow", "Comet", "Birch", "Tundra", "Saffron", "Orbit", "Juniper", "Mistral", "Quartz", "Heron"),
)
COLOURS = ("black", "white", "blue", "green", "red", "sand", "grey", "yellow")
LARGEST = 100_000


class Assortment(NamedTuple):
    """Products by number, (P,) each; a category's are next to each other."""

    items: list[Item]
    category: NDArray[np.int64]
    kind: NDArray[np.int64]
    brand: NDArray[np.int64]
    colour: NDArray[np.int64]
    level: NDArray[np.float64]
    """How dear, 0 to 1, among its kind."""
    shelves: list[slice]
    """The products of each category."""
    brands: list[str]
    partners: NDArray[np.int64]
    """(P, 3): what goes with it, the best first: the kind needed next, alike in range, colour and price."""


def assortment(products: int, rng: np.random.Generator) -> Assortment:
    """A shop with this many products. Raises `UserError` if they are too few to fill it, or too many."""
    least = 4 * max(len(category.kinds) for category in CATEGORIES) * len(CATEGORIES)
    if not least <= products <= LARGEST:
        raise UserError(f"the storefront sells {least} to {LARGEST} products, not {products}")
    brands = sorted({brand for category in CATEGORIES for brand in category.brands.split()})
    bounds = np.linspace(0, products, len(CATEGORIES) + 1).astype(int)
    shelves = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
    rows = [row for c, shelf in enumerate(shelves) for row in _shelf(c, shelf.stop - shelf.start, brands, rng)]
    category, kind, brand, colour, of_range = (np.array([row[i] for row in rows]) for i in range(5))
    level = np.array([row[5] for row in rows])
    items = [_item(number, row, brands) for number, row in enumerate(rows)]
    goods = Assortment(items, category, kind, brand, colour, level, shelves, brands, np.empty((products, 3), np.int64))
    for shelf in shelves:
        for i in range(shelf.start, shelf.stop):
            goods.partners[i] = shelf.start + np.argsort(_apart(goods, i, shelf, of_range), kind="stable")[:3]
    return goods


def _apart(goods: Assortment, i: int, shelf: slice, of_range: NDArray[np.int64]) -> NDArray[np.float64]:
    """How badly the products of `shelf` go with product `i`. Who has a whole range begins another one."""
    kinds = len(CATEGORIES[goods.category[i]].kinds)
    whole = goods.kind[i] == kinds - 1
    apart: NDArray[np.float64] = (
        4.0 * (goods.kind[shelf] != (goods.kind[i] + 1) % kinds)
        + 1.0 * ((of_range[shelf] == of_range[i]) == whole)
        + 0.5 * (goods.brand[shelf] != goods.brand[i])
        + 0.5 * (goods.colour[shelf] != goods.colour[i])
        + np.abs(goods.level[shelf] - goods.level[i])
    )
    return apart


_Row = tuple[int, int, int, int, int, float]
"""Category, kind, brand, colour, range, level."""


def _shelf(c: int, size: int, brands: list[str], rng: np.random.Generator) -> list[_Row]:
    """The products of category `c`: each range has one product of each kind."""
    category = CATEGORIES[c]
    own = category.brands.split()
    kinds = len(category.kinds)
    levels = rng.uniform(0.05, 0.95, size=-(-size // kinds))
    return [
        (
            c,
            i % kinds,
            brands.index(own[i // kinds % len(own)]),
            int(rng.integers(len(COLOURS))),
            i // kinds,
            float(np.clip(levels[i // kinds] + rng.normal(0, 0.05), 0, 1)),
        )
        for i in range(size)
    ]


def _item(number: int, row: _Row, brands: list[str]) -> Item:
    c, kind, brand, colour, of_range, level = row
    category = CATEGORIES[c]
    name, usual = list(category.kinds.items())[kind]
    words = LINES[(of_range + 5 * c) % len(LINES)]
    if again := of_range // len(LINES):
        words += f" {again + 1}"
    if category.series:
        title, attributes = f"The {words} Cycle, {name}, by {brands[brand]}", None
    else:
        title, attributes = f"{brands[brand]} {words} {name}, {COLOURS[colour]}", {"colour": COLOURS[colour]}
    price = round(usual * 4 ** (level - 0.5), 2)
    return Item(f"p{number:05d}", title, category.name, brands[brand], price, attributes)
