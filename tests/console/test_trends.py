from hypothesis import given
from hypothesis import strategies as st

from stream_rec.console.trends import BUCKET_S, BUCKETS, ITEMS, TYPES, Trends


@given(st.lists(st.integers(0, 3 * BUCKETS), max_size=40), st.integers(0, 4 * BUCKETS))
def test_a_trend_counts_the_last_buckets_in_whatever_order_they_come(seen: list[int], now: int) -> None:
    trends = Trends()
    for bucket in seen:
        trends.event("tea", "view", bucket * BUCKET_S)
    newest = max(seen, default=0)
    shown = trends.of("tea", now * BUCKET_S).events
    for bucket, count in zip(range(now - BUCKETS + 1, now + 1), shown, strict=True):
        if newest - BUCKETS < bucket:  # what was older than all that was held when it came is left out
            assert count <= seen.count(bucket)
            if seen == sorted(seen):
                assert count == seen.count(bucket)


def test_events_and_recommendations_of_the_last_ten_minutes() -> None:
    trends = Trends()
    for time_s in (0.0, 595.0, 596.0, 604.0):
        trends.event("tea", "view", time_s)
    trends.recommended(["tea"], 604.0)
    shown = trends.of("tea", 605.0)
    assert (sum(shown.events), shown.events[-2:], shown.recommended[-1], shown.by_type) == (3, (2, 1), 1, {"view": 4})
    assert sum(trends.of("pot", 605.0).events) == 0


def test_memory_is_bounded() -> None:
    trends = Trends()
    for number in range(ITEMS + 5):
        trends.event(f"i{number}", "view", 0.0)
    for number in range(50):
        trends.event("i", f"type {number}", number * BUCKET_S)
    assert len(trends._items) == ITEMS
    assert len(trends.of("i", 0.0).by_type) == TYPES
