from collections import Counter, defaultdict
from itertools import islice, pairwise

import numpy as np
import pytest

from stream_rec.data.event_log import read_events, read_items, to_events, write_events, write_items
from stream_rec.data.simulator.assortment import CATEGORIES
from stream_rec.data.simulator.storefront import START, Storefront
from stream_rec.errors import UserError
from stream_rec.messages import Event


def events_of(shop: Storefront, count: int) -> list[Event]:
    return list(islice(shop.events(), count))


@pytest.fixture(scope="module")
def shop() -> Storefront:
    return Storefront(seed=3, shoppers=900)


@pytest.fixture(scope="module")
def log(shop) -> list[Event]:
    return events_of(shop, 30_000)


def test_the_same_seed_gives_the_same_shop_and_another_one_does_not(shop, log):
    again, other = Storefront(seed=3, shoppers=900), Storefront(seed=4, shoppers=900)
    assert again.items == shop.items != other.items
    assert events_of(again, 3_000) == events_of(again, 3_000) == log[:3_000] != events_of(other, 3_000)


def test_a_shopper_does_the_same_whoever_else_comes(log):
    alone = next(Storefront(seed=3, shoppers=1).events())
    assert alone in log


def test_events_stand_in_the_order_of_time_from_the_start_on(log):
    assert log[0].timestamp > START
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(log))
    later = events_of(Storefront(shoppers=100, start=1_800_000_000.0), 10)
    assert all(1_800_000_000 < event.timestamp < 1_800_000_000 + 7 * 86_400 for event in later)


def test_event_ids_are_unique_and_items_are_in_the_catalogue(shop, log):
    assert len({event.event_id for event in log}) == len(log)
    prices = {item.item_id: item.price for item in shop.items}
    assert all(event.price == prices[event.item_id] for event in log)


def test_a_purchase_follows_a_cart_follows_a_view(log):
    viewed, carted = set(), Counter()
    for event in log:
        pair = (event.user_id, event.item_id)
        match event.event_type:
            case "view":
                viewed.add(pair)
            case "cart":
                assert pair in viewed
                carted[pair] += 1
            case "purchase":
                assert carted[pair] == 1
                carted[pair] -= 1
    counts = Counter(event.event_type for event in log)
    assert counts["view"] > counts["cart"] > counts["purchase"] > len(log) / 50


def test_visits_overlap_in_time(log):
    assert sum(a.user_id != b.user_id for a, b in pairwise(log)) > len(log) / 2


@pytest.mark.parametrize("products", [312, 600, 2_000])
def test_the_catalogue_has_distinct_readable_titles_in_all_categories(products):
    items = Storefront(products=products).items
    assert len(items) == len({item.title for item in items}) == len({item.item_id for item in items}) == products
    assert {item.category for item in items} == {category.name for category in CATEGORIES}
    assert all(item.brand in item.title and item.price is not None and item.price > 0 for item in items)


@pytest.mark.parametrize(
    "wrong", [{"products": 100}, {"products": 10**6}, {"shoppers": 0}, {"shoppers": 10**14}, {"seed": -1}]
)
def test_a_shop_that_cannot_be_is_told(wrong):
    with pytest.raises(UserError, match=str(*wrong.values())):
        Storefront(**wrong)


def test_what_is_written_is_read_back(shop, log, tmp_path):
    write_events(log[:2_000], tmp_path / "events.csv.gz")
    write_items(shop.items, tmp_path / "items.csv")
    assert list(to_events(read_events(tmp_path / "events.csv.gz"))) == log[:2_000]
    assert read_items(tmp_path / "items.csv") == shop.items


def test_five_products_tell_more_than_one_and_one_more_than_popularity(shop, log):
    numbers = {item.item_id: number for number, item in enumerate(shop.items)}
    popular = np.zeros(len(numbers))
    after = np.zeros((2, len(numbers), len(numbers)))  # the next product alone; the next five, the nearest most
    hits, past = [], defaultdict(list)
    for place, event in enumerate(log):
        product, before = numbers[event.item_id], past[event.user_id][:-6:-1]
        if before and place > 0.8 * len(log):
            five = sum(after[1, earlier] / lag for lag, earlier in enumerate(before, 1))
            scores = (popular, after[0, before[0]] + 1e-6 * popular, five + 1e-6 * popular)
            hits.append([product in np.argpartition(-score, 10)[:10] for score in scores])
        popular[product] += 1
        for lag, earlier in enumerate(before, 1):
            after[:, earlier, product] += lag == 1, 1 / lag
        past[event.user_id].append(product)
    popularity, last, five = np.mean(hits, axis=0)
    assert popularity < 0.12
    assert 0.2 < last < 0.35
    assert five > 1.15 * last
