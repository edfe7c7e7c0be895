from stream_rec.console.explain.contributions import GROUPS, difference, group_contributions
from stream_rec.console.explain.user_summary import user_facts, user_summary
from stream_rec.messages import Interest, Item, RankedItem, Recommendation, Window, WindowEvent
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.ranking.explanation import Explanation, Reason

DAY = 86_400.0
ITEMS = {
    "tea": Item("tea", "Green tea", "drinks", price=4.0),
    "cup": Item("cup", "Cup", "kitchen", price=8.0),
    "pot": Item("pot", "", "kitchen", price=30.0),
}
EVENTS = (
    WindowEvent("tea", "view", 0.0),
    WindowEvent("cup", "view", DAY),
    WindowEvent("pot", "view", DAY + 60),
    WindowEvent("cup", "cart", DAY + 120),
)
WINDOW = Window("u", 9, 5, 0, 0.0, EVENTS)
ANSWER = Recommendation(
    "u", 9, 0, DAY, (RankedItem("tea", 1.5, 0.2),), {"view": 0.7, "cart": 0.3}, (Interest("kitchen", 0.6),), "m"
)


def test_a_users_behaviour_and_interests_in_words() -> None:
    assert " ".join(user_summary(user_facts(WINDOW, ANSWER, ITEMS))) == (
        "4 events in the window, the newest of 9, in 2 sessions. "
        "The last session: 2 views and 1 cart within 2 minutes. "
        "Mostly kitchen (3) and drinks (1). "
        "Came back to Cup (2 times). "
        "Prices from 4.00 to 30.00, half of them up to 8.00. "
        "Next will probably be: view (70%) and cart (30%). "
        "Wants, by the model: kitchen (60%)."
    )


def test_little_is_said_of_what_is_little_known() -> None:
    alone = Window("u", 1, 0, 0, 0.0, (WindowEvent("?", "view", 5.0),))
    assert user_summary(user_facts(alone, None, {})) == [
        "1 event in the window, in 1 session.",
        "The last session: 1 view.",
    ]


def test_every_part_belongs_to_one_group_and_the_sum_stays() -> None:
    assert sorted(part for parts in GROUPS.values() for part in parts) == sorted(PARTS)
    parts = {part: float(number) for number, part in enumerate(PARTS)} | {"a later part": 5.0}
    assert sum(group_contributions(parts).values()) == sum(parts.values())


def test_it_is_said_where_the_explained_answer_is_not_the_published_one() -> None:
    def explained(item: str, seq: int = 9, model: str = "m") -> Explanation:
        return Explanation("u", seq, model, (Reason(item, 1.0, 0.2, {}),), ())

    assert "first item is the published" in difference(explained("tea"), ANSWER)
    assert "within 0.5" in difference(explained("tea"), ANSWER)
    assert "first item is NOT" in difference(explained("cup"), ANSWER)
    assert "event 9, the window stands at event 8" in difference(explained("tea", seq=8), ANSWER)
    assert "another model's" in difference(explained("tea", model="other"), ANSWER)
    assert "no published answer" in difference(explained("tea"), None)
