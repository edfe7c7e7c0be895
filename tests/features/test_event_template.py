from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from stream_rec.errors import UserError
from stream_rec.features.catalog import Catalog
from stream_rec.features.event_template import EventTemplate
from stream_rec.features.event_tokenizer import WindowReader, WordReader
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import Tokens
from stream_rec.messages import Event, Item, Window
from stream_rec.models import model_store
from stream_rec.models.model_store import Model
from stream_rec.serving.engine import Engine, Limits
from stream_rec.window import append
from tests.language import END, WORDS, tiny_language_model, word_model
from tests.tiny import CAPACITY, ITEMS, PER_USER, STRIDE, copied, items, window

EngineOf = Callable[..., Engine]
TYPES = ("cart", "view")
WHOLE = EventTemplate("{event} {title}", limit=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return word_model(tiny_language_model(tmp_path_factory.mktemp("language")))


@pytest.fixture
def catalog(model: Model, tmp_path: Path) -> Catalog:
    return Catalog(model.items, model.vectors, model.features, copied(model.alike), TextEncoder("none", tmp_path))


@pytest.fixture
def engine_of(model: Model, tmp_path: Path) -> EngineOf:
    def make(users: int = 100, **limits: float) -> Engine:
        catalog = Catalog(
            model.items, model.vectors, model.features, copied(model.alike), TextEncoder("none", tmp_path)
        )
        chosen = Limits(stride=STRIDE, kv_cache_bytes=users * PER_USER * WORDS.limit)._replace(**limits)
        return Engine(model, catalog, chosen, torch.device("cpu"))

    return make


@pytest.fixture
def read(model: Model, catalog: Catalog) -> Callable[..., Tokens]:
    """Reads one window of items by name; the words by default whole."""

    def make(names: list[str], words: EventTemplate = WHOLE) -> Tokens:
        reader = WindowReader(WordReader(catalog, TYPES, words, model.tokenizer), TYPES)
        return reader.read([window("u", len(names), names)], [[catalog.row(name) for name in names]])[0]

    return make


def told(tokens: Tokens, model: Model) -> str:
    assert model.tokenizer is not None
    return model.tokenizer.decode(tokens.numbers[0].tolist(), skip_special_tokens=False)


def test_a_window_is_a_line_an_event(read, model: Model) -> None:
    assert told(read(["i1", "i2", "nobody knows it"]), model) == "view item 1\ncart item 2\nview (unknown item)\n"


def test_a_long_event_is_cut_and_still_ends(read, model: Model) -> None:
    assert told(read(["i1", "i2"], WORDS), model) == "view i\ncart i\n"


def test_a_new_title_is_read_though_the_item_vector_stays(read, catalog: Catalog, model: Model) -> None:
    before = read(["i1", "i2"])
    renamed = replace(items()[2], title="thing")
    row = catalog.row("i2")
    assert not len(catalog.upsert([renamed], catalog.vectors[row : row + 1]))
    after = read(["i1", "i2"])
    assert told(after, model) == "view item 1\ncart thing\n"
    same = len("view item 1\ncart ")
    assert (before.identities[:same] == after.identities[:same]).all()
    assert before.identities[same] != after.identities[same]


def test_what_looks_like_a_special_token_in_a_title_is_text(read, catalog: Catalog, model: Model) -> None:
    hostile = replace(items()[1], title=f"{END} x\n\nview y")
    catalog.upsert([hostile], catalog.read([hostile]))
    tokens = read(["i1"])
    assert told(tokens, model) == f"view {END} x view y\n"
    assert model.tokenizer.token_to_id(END) not in tokens.numbers


@pytest.mark.parametrize(
    "template", ["", "no field", "{user}", "{title.upper}", "{title!r}", "{title:>99}", "{title", "{}"]
)
def test_a_template_with_anything_but_the_fields_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        EventTemplate(template)


def test_an_event_tells_what_its_template_asks_for() -> None:
    item = Item("1", title="trail shoe", category="sport.shoes", brand="northpeak", price=79.9)
    assert EventTemplate("{event}: {brand} {title} ({category}), {price}").render("add_to_cart", item) == (
        "add to cart: northpeak trail shoe (sport shoes), 79.9"
    )
    assert EventTemplate().render("view", Item("1")) == "view 1"


def log_to_windows(log: list[tuple[int, int]]) -> list[Window]:
    held: dict[int, Window] = {}
    made = []
    for offset, (user, item) in enumerate(log):
        event = Event(f"u{user}", "view" if item % 3 else "cart", 1_000.0 + offset, f"i{item}")
        held[user] = append(
            held.get(user), event, offset=offset, arrived=event.timestamp, capacity=CAPACITY, stride=STRIDE
        )
        made.append(held[user])
    return made


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    log=st.lists(st.tuples(st.integers(0, 4), st.integers(0, ITEMS + 3)), min_size=1, max_size=50),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    users=st.integers(1, 6),
    budget=st.sampled_from([1, 20, 200]),
    renamed=st.dictionaries(st.integers(0, 8), st.tuples(st.integers(0, ITEMS - 1), st.text(max_size=9))),
)
def test_incremental_equals_full(engine_of, log, sizes, users, budget, renamed) -> None:
    """Whatever the batches, evictions and new titles: the cache changes no answer."""
    made = log_to_windows(log)
    engine = engine_of(users, token_budget=budget)
    begin = number = 0
    while begin < len(made):
        batch = made[begin : begin + sizes[number % len(sizes)]]
        if number in renamed:
            at, title = renamed[number]
            item = replace(items()[at], title=title)
            engine.upsert([item], engine.read([item]))
        got, want = engine.states(batch), engine.full(batch)
        assert (got - want).abs().max() <= 1e-4
        begin, number = begin + len(batch), number + 1


def test_a_new_event_costs_its_words_alone(engine_of: EngineOf) -> None:
    engine = engine_of()
    made = log_to_windows([(0, n) for n in range(CAPACITY + 1)])
    work = [engine.step([one]).work for one in made]
    assert [one.appended for one in work] == [0] + [WORDS.limit] * (CAPACITY - 1) + [0]
    assert work[-1].prefilled == (CAPACITY + 1 - STRIDE) * WORDS.limit


def test_a_saved_model_reads_the_same_words(engine_of: EngineOf, model: Model, tmp_path: Path) -> None:
    version = model_store.save(model, tmp_path / "m")
    loaded = Engine.load(tmp_path / "m", tmp_path / "cache", Limits(stride=STRIDE), "cpu")
    asked = [window("u", 3, ["i1", "i2", "i3"])]
    assert torch.equal(loaded.full(asked), engine_of().full(asked))
    tokenizer = tmp_path / "m" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace(END, "<|other|>"))
    assert model_store.version_of(tmp_path / "m") != version
    tokenizer.write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        model_store.load(tmp_path / "m")
