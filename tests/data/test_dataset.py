from collections import defaultdict

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_rec.data import dataset
from stream_rec.features.event_tokenizer import Events, Read
from stream_rec.features.tokens import Tokens
from stream_rec.messages import Event, Window
from stream_rec.window import append


def one_token(events: Events) -> Read:
    return Read(Tokens(events.rows[None], events.rows), np.arange(1, len(events.rows) + 1))


def some_tokens(events: Events) -> Read:
    """One to three tokens an event."""
    counts = 1 + events.rows % 3
    repeated = np.repeat(events.rows, counts)
    return Read(Tokens(repeated[None], repeated), counts.cumsum())


def made_of(users: list[str]) -> dataset.Dataset:
    """A log in which every item occurs once: the n-th event's is row n, counted from 1."""
    frame = pl.DataFrame({"user": users, "item": [f"i{n}" for n in range(len(users))]}).with_columns(
        event=pl.lit("view"), time=pl.int_range(pl.len()).cast(pl.Float64)
    )
    return dataset.dataset(frame, {f"i{n}": n + 1 for n in range(len(users))}, {"view": 1})


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    capacity=st.integers(2, 20),
    share=st.floats(0, 1),
    read=st.sampled_from([one_token, some_tokens]),
    data=st.data(),
)
def test_every_event_is_the_target_of_the_window_that_serving_would_have(lengths, capacity, share, read, data) -> None:
    stride = data.draw(st.integers(1, capacity))
    users = data.draw(st.permutations([f"u{user}" for user, count in enumerate(lengths) for _ in range(count)]))
    made = made_of(users)
    numbers = {f"i{n}": n + 1 for n in range(len(users))}
    cut = int(share * len(users))
    found = dataset.slices(made, capacity, stride, np.ones(len(users), np.bool_))
    batch = dataset.batch(made, found, read) if found else None
    seen: dict[int, list[int]] = {}
    for line, column in zip(*np.nonzero(batch.targets >= 0), strict=True) if batch else ():
        target = int(made.rows[batch.targets[line, column]])
        assert target not in seen
        seen[target] = batch.numbers[0, line, : column + 1].tolist()
    held: dict[str, Window] = {}
    for offset, (user, item) in enumerate(zip(users, numbers, strict=True)):
        if user in held:
            rows = np.array([numbers[event.item_id] for event in held[user].events])
            served = read(Events(rows, rows, rows, np.zeros(1, np.int64))).tokens
            assert seen.pop(numbers[item]) == served.numbers[0].tolist()
        event = Event(user, "view", float(offset), item)
        held[user] = append(held.get(user), event, offset=offset, arrived=0.0, capacity=capacity, stride=stride)
    assert not seen
    low, high = (dataset.slices(made, capacity, stride, wanted) for wanted in (made.order < cut, made.order >= cut))
    targets = [set(_targets(made, part)) for part in (low, high)]
    assert not targets[0] & targets[1]
    assert all(made.order[place] < cut for place in targets[0])
    assert all(made.order[place] >= cut for place in targets[1])


def _targets(made: dataset.Dataset, found: list[dataset.Slice]) -> list[int]:
    if not found:
        return []
    targets = dataset.batch(made, found, one_token).targets
    return targets[targets >= 0].tolist()


LOGS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=80)


@settings(deadline=None)
@given(users=LOGS, capacity=st.integers(2, 12), stride=st.integers(1, 12))
def test_the_window_before_an_event_is_the_one_that_append_keeps(users, capacity, stride) -> None:
    stride = min(stride, capacity)
    made = made_of(users)
    place_of = {row: place for place, row in enumerate(made.rows.tolist())}
    held: dict[str, Window] = {}
    for offset, user in enumerate(users):
        if user in held:
            window = dataset.served(made, place_of[offset + 1], capacity, stride)
            assert made.rows[window].tolist() == [int(event.item_id[1:]) + 1 for event in held[user].events]
        event = Event(user, "view", float(offset), f"i{offset}")
        held[user] = append(held.get(user), event, offset=offset, arrived=0.0, capacity=capacity, stride=stride)


@settings(deadline=None)
@given(users=LOGS, capacity=st.integers(2, 12), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_an_epoch_has_each_known_event_but_a_users_first_as_a_target_once(users, capacity, share, seed) -> None:
    made = made_of(users)
    known = made.order < int(share * len(users))
    found = dataset.crops(made, capacity, known, np.random.default_rng(seed))
    targets = [place for one in found for place in range(one.begin + one.first, one.begin + one.length)]
    firsts = set(made.begins[:-1].tolist())
    assert sorted(targets) == [place for place in np.flatnonzero(known).tolist() if place not in firsts]
    user_of = np.searchsorted(made.begins, np.arange(len(users)), side="right")
    for one in found:
        places = np.arange(one.begin, one.begin + one.length)
        assert known[places].all()
        assert len(set(user_of[places].tolist())) == 1
        assert 2 <= one.length <= capacity + 1
        assert one.first == 1


def test_a_long_history_is_cut_at_other_places_each_epoch() -> None:
    made = made_of(["a"] * 50)
    rng, cuts = np.random.default_rng(0), defaultdict(int)
    for _ in range(20):
        for one in dataset.crops(made, 8, np.ones(50, np.bool_), rng):
            cuts[one.begin] += 1
    assert len(cuts) > 20
    whole = [dataset.crops(made, 49, np.ones(50, np.bool_), rng) for _ in range(3)]
    assert whole == [[dataset.Slice(0, 50, 1)]] * 3
