import io

from rich.console import Console

from stream_rec.local.lookup import table
from stream_rec.messages import Interest, Item, RankedItem, Recommendation

HOSTILE = "[red]\x1b]0;owned\x07\u202eevil\n[/nothing]"


def test_what_comes_from_topics_is_text_and_nothing_else_in_a_terminal() -> None:
    ranked = (RankedItem(HOSTILE, 1.0, 0.1),)
    answer = Recommendation("u", 1, 0, 0.0, ranked, {HOSTILE: 1.0}, (Interest(HOSTILE, 0.5),), HOSTILE)
    page = io.StringIO()
    Console(file=page, width=250).print(table(answer, {HOSTILE: Item(HOSTILE, HOSTILE, HOSTILE)}))
    shown = page.getvalue()
    assert shown.count("[red]\N{REPLACEMENT CHARACTER}]0;owned") == 6
    assert all(one.isprintable() for line in shown.splitlines() for one in line)
