from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream_rec.config import Settings
from stream_rec.features.online_statistics import BaselineRanks, OnlineStatistics
from stream_rec.features.tokens import Numbers
from stream_rec.messages import Event, Recommendation, Window, encode, read_recommendation
from stream_rec.metrics import WorkerMetrics
from stream_rec.models import model_store
from stream_rec.ranking.candidate_features import CandidateFeatures, FeatureExtractor
from stream_rec.serving import engine as engine_module
from stream_rec.serving.cache_audit import Audit
from stream_rec.serving.engine import Engine, Limits
from stream_rec.window import append
from stream_rec.worker.batch import Answer, BatchProcessor, Failed, ModelAnswer, engine_user
from tests.kafka.records import Record
from tests.tiny import CAPACITY, STRIDE, tiny_model

BUDGET = CAPACITY + 2


class Accounts:
    """An engine; keeps the tokens and the windows of each step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.steps: list[tuple[int, int]] = []
        self.floors: list[tuple[str, BaselineRanks]] = []
        self.bad_item = ""

    def affordable(self, windows: Sequence[Window]) -> int:
        self._check(windows)
        return self._engine.affordable(windows)

    def step(self, windows: Sequence[Window], partitions: Sequence[int]) -> Sequence[ModelAnswer | Failed]:
        self._check(windows)
        step = self._engine.step(windows, partitions)
        self.steps.append((step.work.appended + step.work.prefilled, len(windows)))
        said = starmap(ModelAnswer, zip(step.recommendations, step.floors, strict=True))
        answers = [Failed(step.failed[at]) if at in step.failed else next(said) for at in range(len(windows))]
        self.floors += [(one.recommendation.user_id, one.floors) for one in answers if isinstance(one, ModelAnswer)]
        return answers

    @property
    def memory(self) -> OnlineStatistics:
        return self._engine.memories.extractor(0).memory

    def forget(self, user_id: str) -> None:
        self._engine.forget(user_id)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._engine

    def _check(self, windows: Sequence[Window]) -> None:
        if any(window.events[-1].item_id == self.bad_item for window in windows):
            raise ArithmeticError


@pytest.fixture
def model(tmp_path: Path) -> Accounts:
    model_store.save(tiny_model(), tmp_path / "model")
    return Accounts(
        Engine.load(tmp_path / "model", tmp_path, Limits(STRIDE, token_budget=BUDGET, kv_cache_bytes=1e6), "cpu")
    )


def log_of(plan: str) -> list[Record]:
    """A record a letter: a window of that user, in capitals an erasure, `?` is no window."""
    held: dict[str, Window] = {}
    records = []
    for offset, letter in enumerate(plan):
        user = letter.lower()
        if letter == "?":
            records.append(Record(b"x", b"{", offset))
        elif letter.isupper():
            held.pop(user, None)
            records.append(Record(user.encode(), None, offset))
        else:
            event = Event(user, "view", 1_000.0 + offset, f"i{offset * 7 % 40}")
            held[user] = append(held.get(user), event, offset=offset, arrived=1.0, capacity=CAPACITY, stride=STRIDE)
            records.append(Record(user.encode(), encode(held[user]), offset))
    return records


def answer_all(model: Accounts, records: list[Record], *, coalesce: bool = False) -> list[Answer]:
    answerer = BatchProcessor(Settings(coalesce=coalesce), WorkerMetrics(CollectorRegistry()))
    answers: list[Answer] = []
    while records:
        answered = answerer.process(model, records)
        assert answered.records > 0
        answers += answered.answers
        records = records[answered.records :]
    return answers


def told(answers: Sequence[Answer]) -> list[tuple[str, int]]:
    """Who was answered, and which event; 0 is an erasure or a dead letter."""
    values = [(answer.reply.key.decode(), answer.reply.value or b"") for answer in answers]
    return [(key, read_recommendation(value).seq if len(value) > 1 else 0) for key, value in values]


def test_a_step_computes_no_more_than_it_can_afford_unless_one_window_needs_more(model: Accounts) -> None:
    records = log_of("abcdefgh" * 3 * CAPACITY)
    got = told(answer_all(model, records))
    assert got == [(user, n) for n in range(1, 3 * CAPACITY + 1) for user in "abcdefgh"]
    assert all(tokens <= BUDGET or windows == 1 for tokens, windows in model.steps)
    assert max(windows for _, windows in model.steps) == BUDGET


def test_a_window_that_needs_more_than_a_step_can_afford_is_a_step_of_its_own(tmp_path: Path) -> None:
    model_store.save(tiny_model(), tmp_path / "model")
    poor = Accounts(
        Engine.load(tmp_path / "model", tmp_path, Limits(STRIDE, token_budget=1, kv_cache_bytes=1e6), "cpu")
    )
    records = [log_of(user * CAPACITY)[-1] for user in "abc"]
    assert told(answer_all(poor, records)) == [("a", CAPACITY), ("b", CAPACITY), ("c", CAPACITY)]
    assert poor.steps == [(CAPACITY, 1)] * 3


def test_a_burst_is_answered_by_its_newest_window_within_what_a_step_can_afford(model: Accounts) -> None:
    records = log_of("a" * 3 * CAPACITY + "b")
    got = told(answer_all(model, records, coalesce=True))
    assert {user: [seq for name, seq in got if name == user][-1] for user in "ab"} == {"a": 3 * CAPACITY, "b": 1}
    assert [seq for name, seq in got if name == "a"] == sorted({seq for name, seq in got if name == "a"})
    assert len(got) < len(records) / 2
    assert all(tokens <= BUDGET for tokens, _ in model.steps)


def test_of_a_burst_each_event_is_compared_with_the_answer_before_the_burst(model: Accounts) -> None:
    registry = CollectorRegistry()
    answerer = BatchProcessor(Settings(coalesce=True), WorkerMetrics(registry))
    records = log_of("aaaa")
    (first,) = answerer.process(model, records[:1]).answers
    assert first.prediction is not None

    def counted(name: str) -> float:
        return registry.get_sample_value(f"stream_rec_{name}_events_total", {"event_type": "view"}) or 0.0

    first.prediction.committed_s = 0.9  # they arrive at 1.0
    answerer.process(model, records[1:3])
    assert (counted("evaluated"), counted("too_late")) == (2, 0)
    answerer.process(model, records[3:])  # nothing says that the answer to the burst is committed
    assert (counted("evaluated"), counted("too_late")) == (2, 1)


def test_erasures_and_bad_records_keep_their_place_among_the_windows(model: Accounts) -> None:
    plan = "ab?aA?aab" * CAPACITY
    answers = answer_all(model, log_of(plan))
    ours = [seq for key, seq in told(answers) if key == "a"]
    assert ours == [1, 2, 0] + [1, 2, 3, 4, 0] * (CAPACITY - 1) + [1, 2]
    assert len(answers) == len(plan)


def test_a_window_that_the_model_fails_on_is_a_dead_letter_and_the_others_are_answered(model: Accounts) -> None:
    records = log_of("abcab")
    model.bad_item = "i14"
    answers = answer_all(model, records)
    dead = [answer.reply for answer in answers if answer.reply.topic == "dead-letter"]
    assert [(reply.key, dict(reply.headers)["reason"]) for reply in dead] == [(b"c", b"internal error")]
    alive = [answer for answer in answers if answer.reply.topic == "recommendations"]
    assert told(alive) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_an_erasure_tells_what_is_left_of_its_user(model: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer_all(model, log_of("abA"))[-1].reply.headers == [("held", b"nothing")]
    monkeypatch.setattr(model, "forget", lambda _: None)
    assert answer_all(model, log_of("abB"))[-1].reply.headers == [("held", b"something")]


@pytest.mark.parametrize("fails", ["recommendations", "ask", "audit"])
def test_what_fails_after_the_memory_has_learned_is_not_answered_by_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The others have the answers, and the floors the places, of a run in which nothing fails."""
    model_store.save(tiny_model(), tmp_path / "model")
    limits = Limits(STRIDE, kv_cache_bytes=1e6, audit_share=1.0)
    records = log_of("abcab" * 4)
    calm, spoilt = (Accounts(Engine.load(tmp_path / "model", tmp_path, limits, "cpu")) for _ in range(2))
    want = {(answer.reply.key, seq): answer for answer, (_, seq) in with_seq(answer_all(calm, records))}
    make, ask = engine_module.recommendations, FeatureExtractor.extract

    def spoil(windows: Sequence[Window], *given: object) -> list[Recommendation]:
        if any(window.user_id.endswith(":c") for window in windows):
            raise ArithmeticError
        return make(windows, *given)

    def refuse(self: FeatureExtractor, rows: Sequence[int], near: Numbers) -> CandidateFeatures:
        if rows == [15]:  # the first window of "c"
            raise ArithmeticError
        return ask(self, rows, near)

    def broken(*_: object) -> Audit:
        raise MemoryError

    monkeypatch.setattr(engine_module, "recommendations", spoil if fails == "recommendations" else make)
    monkeypatch.setattr(FeatureExtractor, "extract", refuse if fails == "ask" else ask)
    if fails == "audit":
        monkeypatch.setattr(engine_module.cache_audit, "compare", broken)
    got = answer_all(spoilt, records)
    dead = [answer.reply for answer in got if answer.reply.topic == "dead-letter"]
    assert [reply.key for reply in dead] == [b"c"] * {"recommendations": 4, "ask": 1, "audit": 0}[fails]
    alive = [answer for answer in got if answer.reply.topic == "recommendations"]
    assert len(alive) == len(records) - len(dead)
    for answer, (_, seq) in with_seq(alive):
        one, other = (read_recommendation(of.reply.value or b"") for of in (answer, want[answer.reply.key, seq]))
        assert {r.item_id: r.score for r in one.items} == pytest.approx(
            {r.item_id: r.score for r in other.items}, abs=2e-4
        )
    for name, table in calm.memory.state().items():
        assert np.array_equal(table, spoilt.memory.state()[name])
    others = [[floors for key, floors in one.floors if not key.endswith("c")] for one in (calm, spoilt)]
    assert others[0] == others[1]


def with_seq(answers: Sequence[Answer]) -> list[tuple[Answer, tuple[str, int]]]:
    return list(zip(answers, told(answers), strict=True))


def test_a_user_of_two_partitions_is_answered_in_each_and_erased_in_one(model: Accounts) -> None:
    first, second = log_of("aaa"), [record._replace(partition=1) for record in log_of("aa")]
    got = answer_all(model, [first[0], second[0], *first[1:], second[1]], coalesce=True)
    assert [(answer.partition, told([answer])) for answer in got] == [(0, [("a", 3)]), (1, [("a", 2)])]
    (erased,) = answer_all(model, [Record(b"a", None, 3)])
    assert erased.reply.headers == [("held", b"nothing")]
    assert engine_user("a", 0) not in model
    assert engine_user("a", 1) in model
