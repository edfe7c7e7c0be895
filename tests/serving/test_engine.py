from collections.abc import Callable
from math import isfinite
from pathlib import Path
from time import time

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from stream_rec.errors import UserError
from stream_rec.features.catalog import Catalog
from stream_rec.features.online_statistics import FOREVER, HalfLives, OnlineStatistics
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import Tokens
from stream_rec.messages import Event, Item, Window, WindowEvent
from stream_rec.models import model_store
from stream_rec.models.model_store import Model
from stream_rec.ranking import ranker
from stream_rec.serving.engine import Engine, Limits
from stream_rec.serving.incremental import ForwardStats
from stream_rec.window import append
from tests.tiny import BLEND, CAPACITY, HORIZONS, ITEMS, PER_USER, STRIDE, TEXT_DIM, copied, items, window

DAY = 86_400.0
EngineOf = Callable[..., Engine]


def log_to_windows(log: list[tuple[int, int, int]]) -> list[Window]:
    """Windows of a log of (user, item, seconds since the last event), as the agents write them."""
    held: dict[int, Window] = {}
    made = []
    time = 1_000.0
    for offset, (user, item, wait) in enumerate(log):
        time += wait
        event = Event(f"u{user}", "view" if item % 3 else "cart", time, f"i{item}")
        held[user] = append(held.get(user), event, offset=offset, arrived=time, capacity=CAPACITY, stride=STRIDE)
        made.append(held[user])
    return made


logs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, ITEMS + 3), st.integers(0, 5_000)), min_size=1, max_size=80)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    log=logs,
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    users=st.integers(1, 8),
    budget=st.sampled_from([1, 7, 64]),
    host=st.integers(0, 4),
    restarts=st.sets(st.integers(0, 20)),
    erased=st.dictionaries(st.integers(0, 20), st.integers(0, 5)),
    lost=st.sets(st.integers(0, 20)),
)
def test_incremental_equals_full(engine_of, log, sizes, users, budget, host, restarts, erased, lost):
    """Whatever the batches, evictions, restarts, erased users and coalesced windows: the cache changes no answer."""
    made = log_to_windows(log)
    limits = {"token_budget": budget, "kv_host_bytes": host * PER_USER}
    engine = engine_of(users, **limits)
    begin = number = 0
    while begin < len(made):
        batch = made[begin : begin + sizes[number % len(sizes)]]
        begin += len(batch)
        if number in restarts:
            engine = engine_of(users, **limits)
        if number in erased:
            engine.forget(f"u{erased[number]}")
        if number in lost:
            batch = list({window.user_id: window for window in batch}.values())
        got, want = engine.states(batch), engine.full(batch)
        assert (got - want).abs().max() <= 1e-4
        number += 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_answers_do_not_depend_on_how_windows_fall_into_batches(engine_of, log, sizes):
    made = log_to_windows(log)
    alone, together = engine_of(), engine_of()
    want = [alone.step([window]).recommendations[0] for window in made]
    got, begin, number = [], 0, 0
    while begin < len(made):
        batch = made[begin : begin + sizes[number % len(sizes)]]
        got += together.step(batch).recommendations
        begin, number = begin + len(batch), number + 1
    for one, other in zip(want, got, strict=True):
        assert (one.user_id, one.seq, one.offset) == (other.user_id, other.seq, other.offset)
        ours, theirs = ({ranked.item_id: ranked.score for ranked in r.items} for r in (one, other))
        for item in ours.keys() & theirs.keys():
            assert ours[item] == pytest.approx(theirs[item], abs=1e-3)
        ties = min(ours.values()) + 1e-3  # items that rounding may swap at the edge of the list
        assert all(ours[item] <= ties for item in ours.keys() - theirs.keys())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_the_interest_in_each_item_is_what_the_formula_says_of_the_whole_window(engine_of, model, log, sizes):
    """sigmoid(theta . [user; item] + bias), whatever was cached."""
    made, engine, encoder = log_to_windows(log), engine_of(), model.encoder
    theta, bias = (weight.detach().double() for weight in (encoder.theta.weight[0], encoder.theta.bias[0]))
    with torch.no_grad():
        items = encoder.items(torch.from_numpy(engine.catalog.vectors), encoder.residual.weight).double()
    number = begin = 0
    while begin < len(made):
        batch = made[begin : begin + sizes[number % len(sizes)]]
        answers, states = engine.step(batch).recommendations, engine.full(batch).double()
        for answer, asked, state in zip(answers, batch, states, strict=True):
            last = [float(asked.events[-1].event_type == name) for name in ("unknown", "cart", "view")]
            user = torch.cat([state / state.norm(), torch.tensor(last).double()])
            for ranked in answer.items:
                item = items[engine.catalog.row(ranked.item_id)]
                want = torch.sigmoid(theta @ torch.cat([user, item / item.norm()]) + bias)
                assert ranked.interest == pytest.approx(float(want), abs=1e-4)
        begin, number = begin + len(batch), number + 1


def test_a_model_without_a_goal_tells_no_interest(model: Model, tmp_path: Path) -> None:
    """As all of format 3, which are still read: their next type did not know the last one."""
    model_store.save(model, tmp_path)
    config = msgspec.json.decode((tmp_path / "config.json").read_bytes())
    weights = load_file(tmp_path / "encoder.safetensors")
    for name in ("theta.weight", "theta.bias"):
        del weights[name]
    width = model.encoder.width
    weights["next_type.weight"] = weights["next_type.weight"][:, :width].contiguous()
    del config["goal"]
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config | {"format": 3}))
    save_file(weights, tmp_path / "encoder.safetensors")
    old = Engine.load(tmp_path, tmp_path / "cache", Limits(stride=STRIDE), "cpu")
    asked = [window("u", 3, ["i1", "i2", "i3"])]
    answer = old.step(asked).recommendations[0]
    assert {ranked.interest for ranked in answer.items} == {None}
    state = torch.nn.functional.normalize(old.full(asked), dim=1)
    head = model.encoder.next_type
    types = torch.softmax((state @ head.weight[:, :width].T + head.bias)[0, 1:], dim=0)
    assert list(answer.next_event.values()) == pytest.approx(types.tolist(), abs=1e-3)


def test_an_append_computes_one_token_and_a_moved_window_all_of_them(engine_of: EngineOf) -> None:
    engine = engine_of()
    made = log_to_windows([(0, n, 10) for n in range(CAPACITY + 1)])
    assert [engine.step([one]).work.appended for one in made] == [0] + [1] * (CAPACITY - 1) + [0]
    again = engine_of()
    assert again.step(made[:1]).work.prefilled == 1
    assert again.step(made[-1:]).work.prefilled == CAPACITY + 1 - STRIDE


def test_a_burst_of_one_user_is_computed_in_one_row(engine_of: EngineOf) -> None:
    made = log_to_windows([(0, n, 10) for n in range(CAPACITY)])
    step = engine_of().step(made)
    assert [r.seq for r in step.recommendations] == list(range(1, CAPACITY + 1))
    assert (step.work.prefilled, step.work.misses) == (CAPACITY, 1)


def test_a_changed_item_re_encodes_the_windows_that_hold_it(engine_of: EngineOf) -> None:
    engine = engine_of()
    old, other = window("u", 3, ["i1", "i2", "i3"]), window("v", 2, ["i4", "i5"])
    before = engine.states([old, other])
    changed = Item("i2", title="another thing", vector=[1.0] * TEXT_DIM)
    engine.upsert([changed], engine.read([changed]))
    after = engine.states([old, other])
    assert torch.allclose(before[1], after[1], atol=1e-5)
    assert not torch.allclose(before[0], after[0])
    assert (after - engine.full([old, other])).abs().max() <= 1e-4


def test_a_new_item_is_recommendable_at_once_and_a_withdrawn_one_no_more(engine_of: EngineOf) -> None:
    engine = engine_of(top_k=ITEMS + 10)
    new = Item("new", title="new", category="c9", vector=items()[7].vector)
    engine.upsert([new], engine.read([new]))
    assert "new" in {ranked.item_id for ranked in engine.step([window("u", 1, ["i1"])]).recommendations[0].items}
    gone = Item("new", title="new", category="c9", vector=new.vector, available=False)
    engine.upsert([gone], engine.read([gone]))
    answer = engine.step([window("u", 2, ["i1", "new"])]).recommendations[0]
    assert "new" not in {ranked.item_id for ranked in answer.items}
    assert len(answer.items) == ITEMS


@pytest.mark.parametrize("scoring", ["exact", "ann"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_an_item_whose_vector_is_not_finite_is_left_out_and_takes_no_other_with_it(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch, scoring: str, value: float
) -> None:
    monkeypatch.setattr(ranker, "FEWEST", 16)
    calm, spoilt = (engine_of(top_k=ITEMS, scoring=scoring, index_effort=100) for _ in range(2))
    vector = np.full((1, spoilt.catalog.vectors.shape[1]), value, np.float32)
    spoilt.upsert([items()[5]], vector)
    spoilt.upsert([Item("new")], vector)
    gone = [replace(items()[5], available=False)]
    calm.upsert(gone, calm.read(gone))
    asked = [window("u", 3, ["i1", "i2", "i3"]), window("v", 1, ["i7"])]
    got, want = spoilt.step(asked).recommendations, calm.step(asked).recommendations
    for one, other in zip(got, want, strict=True):
        assert [ranked.item_id for ranked in one.items] == [ranked.item_id for ranked in other.items]
        assert [ranked.score for ranked in one.items] == pytest.approx([ranked.score for ranked in other.items])
        assert len(one.items) == ITEMS - 1
    assert len(spoilt.step([window("w", 2, ["new", "i5"])]).recommendations[0].items) == ITEMS - 1
    assert (spoilt.unusable_items, calm.unusable_items) == (2, 0)
    mended = [replace(items()[5], title="mended")]
    spoilt.upsert(mended, spoilt.read(mended))
    assert spoilt.unusable_items == 1
    assert "i5" in {ranked.item_id for ranked in spoilt.step(asked).recommendations[0].items}


def test_a_window_whose_state_is_not_finite_has_no_answer(engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of()
    encode = engine.incremental.encode
    monkeypatch.setattr(engine.incremental, "encode", lambda *given: (encode(*given)[0] * torch.nan, ForwardStats()))
    with pytest.raises(ArithmeticError):
        engine.step([window("u", 1, ["i1"])])


def test_a_catalogue_with_nothing_available_gives_an_empty_answer(engine_of: EngineOf) -> None:
    engine = engine_of()
    gone = [replace(item, available=False) for item in items()]
    engine.upsert(gone, engine.read(gone))
    answer = engine.step([window("u", 1, ["i1"])]).recommendations[0]
    assert answer.items == ()
    assert all(isfinite(interest.weight) for interest in answer.interests)


def test_an_event_of_an_unknown_item_is_answered_and_counted(engine_of: EngineOf) -> None:
    step = engine_of().step([window("u", 2, ["i1", "nobody knows it"])])
    assert step.unknown_items == 1
    assert len(step.recommendations[0].items) == 20


def test_probabilities_are_a_distribution_and_ranked(engine_of: EngineOf) -> None:
    answer = engine_of(top_k=ITEMS, interests_k=10).step([window("u", 3, ["i1", "i2", "i3"])]).recommendations[0]
    probabilities = [ranked.probability for ranked in answer.items]
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(answer.next_event.values()) == pytest.approx(1, abs=1e-3)
    assert sum(interest.weight for interest in answer.interests) == pytest.approx(1, abs=1e-3)


def test_the_online_memory_raises_what_followed(engine_of: EngineOf) -> None:
    engine = engine_of(top_k=ITEMS)
    asked = window("u", 1, ["i1"])

    def score(of: str) -> float:
        return next(r.score for r in engine.step([asked]).recommendations[0].items if r.item_id == of)

    before = score("i9")
    for user in range(20):
        engine.learn(window(f"v{user}", 2, ["i1", "i9"]))
    assert score("i9") > before + 0.5


def test_a_new_item_is_found_through_its_text_by_users_of_similar_items(engine_of: EngineOf) -> None:
    engine = engine_of()
    catalog = engine.catalog
    rows = [catalog.row("i1"), catalog.row("i7")]

    def candidates() -> set[int]:
        """Without the decoder's."""
        near = np.zeros(0, np.int64)
        return set(engine.memories.extractor(0).extract(rows, near).rows.tolist())

    alike, foreign = (np.array(items()[7].vector) * sign for sign in (1.0, -1.0))
    new = [Item("alike", vector=alike.tolist()), Item("foreign", vector=foreign.tolist())]
    engine.upsert(new, engine.read(new))
    assert catalog.row("alike") in candidates()
    first, second = (catalog.text.cosines[catalog.row(name)] for name in ("alike", "foreign"))
    assert first.max() > 0.9 > second.max()
    similar = catalog.text.rows[catalog.row("i7")][catalog.text.cosines[catalog.row("i7")].argmax()]
    assert similar == catalog.row("alike")
    turned = [Item("foreign", vector=alike.tolist())]
    engine.upsert(turned, engine.read(turned))
    assert catalog.row("foreign") in candidates()
    assert np.isclose(catalog.text.cosines[catalog.row("foreign")].max(), 1, atol=1e-4)


def test_a_step_that_fails_while_it_writes_spoils_no_later_answer(engine_of: EngineOf, monkeypatch) -> None:
    engine = engine_of()
    before, other = (["i1", "i2", *names] for names in (["i3", "i4", "i5"], ["i9", "i8", "i7", "i6"]))
    engine.step([window("u", 5, before)])
    forward = engine.incremental._forward

    def fail(*given: object) -> None:
        forward(*given)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.incremental, "_forward", fail)
    with pytest.raises(RuntimeError):
        engine.step([window("u", 6, other)])
    monkeypatch.undo()
    asked = [window("u", 7, [*before, "i6", "i7"])]
    assert (engine.states(asked) - engine.full(asked)).abs().max() <= 1e-4


def test_items_without_a_category_take_no_interests_place(engine_of: EngineOf) -> None:
    engine = engine_of(interests_k=3)
    bare = [replace(item, category="") for item in items()[5:]]
    engine.upsert(bare, engine.read(bare))
    answer = engine.step([window("u", 2, ["i7", "i9"])]).recommendations[0]
    assert {interest.label for interest in answer.interests} == {"c0", "c1", "c2"}
    assert sum(interest.weight for interest in answer.interests) < 0.5


def test_an_event_from_long_ago_is_answered_like_any_other(engine_of: EngineOf) -> None:
    engine = engine_of()
    for user in range(20):
        engine.learn(window(f"v{user}", 2, ["i1", "i9"]))
    old = Window("u", 1, 0, 0, 1_000.0, (WindowEvent("i1", "view", 1_000.0 - 200 * HORIZONS.lasting),))
    answer = engine.step([old]).recommendations[0]
    assert len(answer.items) == 20
    assert all(isfinite(ranked.score) for ranked in answer.items)


def test_an_event_that_comes_late_is_answered_from_the_statistics_of_now(engine_of: EngineOf) -> None:
    """What it teaches has all but decayed."""
    answers = []
    for happened in (1_000.0 - 30 * DAY, 1_000.0 - 60 * DAY):
        engine = engine_of()
        for user in range(20):
            engine.learn(window(f"v{user}", 2, ["i1", "i9"]))
        late = Window("u", 1, 0, 0, 1_000.0, (WindowEvent("i1", "view", happened),))
        answers.append(engine.step([late]).recommendations[0].items)
        reasons = engine.explain(late).items
        recency = {reason.item_id: reason.parts["recency"] for reason in reasons}
        assert recency["i9"] == pytest.approx(BLEND.recency * np.log(20 + 0.05), abs=0.01)
        assert recency["i5"] == pytest.approx(BLEND.recency * np.log(0.05))
    assert [item.item_id for item in answers[0]] == [item.item_id for item in answers[1]]


def test_an_event_that_claims_a_time_after_its_arrival_counts_as_one_of_then(engine_of: EngineOf) -> None:
    asked = window("u", 3, ["i3", "i1", "i4"], offset=99)
    answers = []
    for ahead in (0.0, 300.0, 10_000 * HORIZONS.lasting):
        engine = engine_of()
        for user in range(9):
            engine.learn(window(f"v{user}", 2, ["i1", "i9"]))
        arrived = 1_100.0
        strange = tuple(WindowEvent(name, "view", arrived + ahead) for name in ("i7", "i9"))
        engine.step([Window("strange", 2, 0, 50, arrived, strange)])
        answers.append(engine.step([asked]).recommendations[0])
        assert engine.memories.extractor(0).memory.now == asked.events[-1].timestamp
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("ahead", [2 * DAY, 1e10])
def test_a_window_that_arrived_in_the_future_does_not_end_all_learning(engine_of: EngineOf, ahead: float) -> None:
    now = time()
    engine = engine_of()
    strange = (WindowEvent("i7", "view", now + ahead),)
    engine.learn(Window("strange", 1, 0, 0, now + ahead, strange))
    memory = engine.memories.extractor(0).memory
    assert memory.now <= time() + 3_600
    for user in range(9):
        events = tuple(WindowEvent(name, "view", now) for name in ("i1", "i9"))
        engine.learn(Window(f"v{user}", 2, 0, user, now, events))
    recency = {reason.item_id: reason.parts["recency"] for reason in engine.explain(window("u", 1, ["i1"])).items}
    assert recency["i9"] > recency["i5"]


def test_a_loaded_model_knows_of_no_items_but_its_own(engine_of: EngineOf, model: Model, tmp_path: Path) -> None:
    """The counts are longer than the catalogue, and say nothing of what nobody met."""
    memory = OnlineStatistics(HORIZONS)
    memory.learn_last([1, 2], 1_000.0)
    model_store.save(model._replace(memory=memory.state()), tmp_path / "m")
    engine = Engine.load(tmp_path / "m", tmp_path / "cache", Limits(stride=STRIDE), "cpu")
    assert len(memory.state()["recency.sums"]) > len(engine.catalog)
    assert engine.memories.extractor(0).memory.recency.highest.tolist() == [2]
    assert len(engine.step([window("u", 1, ["i3"])]).recommendations[0].items) == 20
    changed = [replace(items()[3], vector=[1.0] * TEXT_DIM)]
    engine.upsert(changed, engine.read(changed))  # what was loaded can be changed in place
    assert engine.step([window("u", 2, ["i3", "i4"])]).recommendations


def test_windows_longer_than_the_model_reads_are_cut_as_the_window_moves(engine_of: EngineOf) -> None:
    names = [f"i{n}" for n in range(CAPACITY + 3)]
    long = window("u", len(names), names)
    short = window("u", len(names), names[STRIDE:], start=STRIDE)
    engine = engine_of()
    assert torch.allclose(engine.full([long]), engine.full([short]), atol=1e-6)
    wide = engine_of(stride=4 * CAPACITY)  # that of the windows; a model that reads less moves by what it reads
    newest = window("u", len(names), names[CAPACITY:], start=CAPACITY)
    assert torch.allclose(wide.full([long]), wide.full([newest]), atol=1e-6)


def test_a_saved_model_answers_like_the_one_in_memory(engine_of: EngineOf, model: Model, tmp_path: Path) -> None:
    version = model_store.save(model, tmp_path / "m")
    loaded = Engine.load(tmp_path / "m", tmp_path / "cache", Limits(stride=STRIDE), "cpu")
    assert loaded.version == version != "test"
    asked = [window("u", 3, ["i1", "i2", "i3"])]
    assert torch.equal(loaded.full(asked), engine_of().full(asked))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: (path / "config.json").unlink(), "no model in"),
        (lambda path: (path / "config.json").write_text('{"format": 99}'), "format 99"),
        (lambda path: (path / "config.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "encoder.safetensors").write_bytes(b"\x00" * 64), "damaged"),
        (lambda path: (path / "items.jsonl").write_text("{}\n"), "damaged"),
        (lambda path: (path / "items.safetensors").unlink(), "damaged"),
    ],
)
def test_a_bad_model_folder_is_one_clear_line(model: Model, tmp_path: Path, spoil, says) -> None:
    model_store.save(model, tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        model_store.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_not_there_is_refused(model: Model, tmp_path: Path) -> None:
    model_store.save(model, tmp_path)
    with pytest.raises(UserError, match="CUDA devices; set device to cpu"):
        Engine.load(tmp_path, tmp_path, Limits(stride=STRIDE), "cuda:99")


def test_a_cache_too_small_for_one_user_is_refused(engine_of: EngineOf) -> None:
    with pytest.raises(UserError, match="kv_cache_gb"):
        engine_of(users=0)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=logs, size=st.integers(1, 40), budget=st.integers(1, 60))
def test_what_a_step_can_afford_is_what_it_computes(engine_of, log, size, budget):
    """The promised windows stay within the budget, and one more would not have."""
    engine = engine_of(token_budget=budget)
    made = log_to_windows(log)
    while made:
        asked = made[:size]
        count = engine.affordable(asked)
        costs = engine.incremental.new_token_counts([one.user_id for one in asked], engine._preprocessor.tokens(asked))
        work = engine.step(asked[:count]).work
        assert work.appended + work.prefilled <= max(budget, costs[0])
        assert count == len(asked) or costs[: count + 1].sum() > budget
        made = made[count:]


def test_an_audit_finds_nothing_in_a_sound_cache_and_a_spoilt_one_at_once(engine_of: EngineOf) -> None:
    engine = engine_of(audit_share=1.0)
    made = log_to_windows([(user, 3 * user + n, 10) for n in range(6) for user in range(4)])
    found = engine.step(made[:-4]).audit
    assert (found.windows, found.changed) == (len(made) - 4, 0)
    assert found.largest <= 1e-5
    for cached in engine.incremental.cache.first.values:
        cached.neg_()
    found = engine.step(made[-4:]).audit
    assert found.changed > 0
    assert found.largest > 1e-2
    assert engine_of().step(made).audit.windows == 0


def test_slots_under_pressure_evict_the_least_recently_used(engine_of: EngineOf) -> None:
    engine = engine_of(users=2)
    for user in ("a", "b", "a", "c"):
        engine.step([window(user, 2, ["i1", "i2"])])
    assert engine.incremental.cache.evictions == 1
    kept = [engine.step([window(user, 3, ["i1", "i2", "i3"])]).work.hits for user in ("a", "c")]
    assert kept == [1, 1]


def test_forgetting_a_user_leaves_nothing_in_the_slot(engine_of: EngineOf) -> None:
    engine = engine_of(users=1)
    engine.step([window("u", 2, ["i1", "i2"])])
    cache = engine.incremental.cache.first
    assert any(layer.any() for layer in cache.keys)
    engine.forget("u")
    assert not any(layer.any() for layer in (*cache.keys, *cache.values))
    assert np.count_nonzero(cache.identities) == 0


def test_whom_the_first_tier_has_no_room_for_returns_from_the_second_without_a_prefill(engine_of: EngineOf) -> None:
    engine = engine_of(users=2, kv_host_bytes=2 * PER_USER)
    for user in "abcd":
        engine.step([window(user, 2, ["i1", "i2"])])
    assert engine.incremental.cache.evictions == 0
    grown = [window(user, 3, ["i1", "i2", "i3"]) for user in "abcd"]
    works = [engine.step([one]).work for one in grown]
    assert [work.appended for work in works] == [1, 1, 1, 1]
    assert (engine.states(grown) - engine.full(grown)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bytes_cost_little_accuracy(engine_of: EngineOf, dtype: str) -> None:
    engine = engine_of(dtype=dtype)
    made = log_to_windows([(user, 3 * user + n, 10) for n in range(6) for user in range(4)])
    assert engine.incremental.cache.bytes_per_user * 2 == PER_USER
    for one in made:
        got, want = engine.states([one]), engine.full([one])
        assert 0 <= (got - want).abs().max() <= 0.05 * want.abs().max()


def test_a_step_tells_what_the_floors_would_have_said(engine_of: EngineOf) -> None:
    engine = engine_of()
    first = engine.step([window("u", 2, ["i1", "i2"]), window("v", 1, ["i1"])]).floors
    assert first[0] == {"markov": None, "popularity": None, "recent": None}
    again = engine.step([window("v", 2, ["i1", "i2"]), window("w", 1, ["i2"])]).floors
    assert again[0] == {"markov": 1, "popularity": 2, "recent": 2}  # before it was learned
    assert again[1] == {"markov": None, "popularity": 1, "recent": 1}  # after the window before it


def test_without_times_nothing_is_forgotten_and_live_events_are_learned(model: Model, tmp_path: Path) -> None:
    """The trained rows are numbered, and live events come a billion seconds after them."""
    memory = OnlineStatistics(HalfLives(FOREVER, FOREVER))
    for row in range(2_000):
        memory.learn_last([1 + row % 3], float(row))
    config = replace(model.config, has_time=False, horizons=HalfLives(FOREVER, FOREVER), trained_until=1e12)
    model = model._replace(config=config, memory=memory.state())
    texts = TextEncoder(config.text_encoder, tmp_path)
    catalog = Catalog(model.items, model.vectors, model.features, copied(model.alike), texts)
    engine = Engine(model, catalog, Limits(stride=STRIDE, kv_cache_bytes=100 * PER_USER), torch.device("cpu"))
    assert engine.trained_until is None
    soon = window("u", 2, ["i5", "i7"])
    late = replace(soon, events=tuple(replace(one, timestamp=1.7e9 * at) for at, one in enumerate(soon.events, 1)))
    assert torch.equal(engine.full([soon]), engine.full([late]))
    engine.learn(late)
    popularity = engine.memories.extractor(0).memory.popularity
    now = popularity.sums / popularity.decay.weight(4e9)
    assert now[[1, 2, 3, *catalog.rows(["i5", "i7"])]].tolist() == [667, 667, 666, 1, 1]


def test_an_audit_encodes_no_more_tokens_than_a_step_may(engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(audit_share=1.0, token_budget=3 * CAPACITY)
    sizes: list[int] = []
    whole = engine.incremental.encode_full

    def counted(tokens: list[Tokens]) -> torch.Tensor:
        sizes.append(len(tokens) * max(map(len, tokens)))
        return whole(tokens)

    monkeypatch.setattr(engine.incremental, "encode_full", counted)
    made = log_to_windows([(user, 3 * user + n, 10) for n in range(CAPACITY) for user in range(6)])
    found = [engine.step(made[begin : begin + 6]).audit for begin in range(0, len(made), 6)]
    assert max(sizes) <= 3 * CAPACITY
    assert [one.windows for one in found] == [min(6, 3 * CAPACITY // n) for n in range(1, CAPACITY + 1)]
    assert sum(one.changed for one in found) == 0
    engine = engine_of(audit_share=1.0, token_budget=1)
    assert engine.step(made[-1:]).audit.windows == 1  # a window beyond the budget, as a step may have one
