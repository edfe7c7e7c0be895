import pytest

from stream_rec.errors import UserError
from stream_rec.training.config import goal_of, parse_weights, weights_of


@pytest.mark.parametrize(
    ("given", "event_types", "goal"),
    [
        (None, ["view", "purchase"], "purchase"),
        (None, ["purchase"], None),
        (None, ["view", "cart"], None),
        ("cart", ["view", "cart"], "cart"),
    ],
)
def test_the_goal_is_what_is_said_or_the_purchase_among_other_events(given, event_types, goal) -> None:
    assert goal_of(given, event_types) == goal


@pytest.mark.parametrize(("event_types", "says"), [(["view", "cart"], "are cart, view"), (["buy"], "tells nothing")])
def test_a_goal_that_the_log_cannot_teach_is_refused(event_types, says) -> None:
    with pytest.raises(UserError, match=says):
        goal_of("buy", event_types)


def test_each_event_type_has_its_weight() -> None:
    given = parse_weights("view=1, purchase=4")
    assert weights_of(given, ["cart", "purchase", "view"]) == [1.0, 4.0, 1.0]
    assert weights_of(parse_weights(" "), ["view"]) == [1.0]


@pytest.mark.parametrize("text", ["view", "=1", "view=x", "view=-1", "view=nan", "view=inf", "view=1,view=2"])
def test_weights_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--weights"):
        parse_weights(text)


@pytest.mark.parametrize(("given", "says"), [({"buy": 2.0}, "are cart, view"), ({"view": 0, "cart": 0}, "nothing")])
def test_weights_that_fit_no_log_are_refused(given, says) -> None:
    with pytest.raises(UserError, match=says):
        weights_of(given, ["cart", "view"])
