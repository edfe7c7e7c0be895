"""The newest recommendation of a user, for a person: with titles."""

import sys
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from stream_rec.client import latest, titles
from stream_rec.config import Settings
from stream_rec.messages import Item, Recommendation
from stream_rec.runtime.terminal import Terminal, print_json, printable


async def show(user: str, settings: Settings, as_json: bool) -> int:
    """Prints it; returns the exit code, 1 where there is none. Raises `UserError` when no broker answers."""
    answer = await latest(user, settings)
    if answer is None:
        print("no recommendation for this user", file=sys.stderr)  # noqa: T201 - the command's output
        return 1
    if as_json:
        print_json(answer)
    else:
        known = await titles([ranked.item_id for ranked in answer.items], settings)
        Terminal().print(table(answer, known))
    return 0


def table(answer: Recommendation, known: dict[str, Item], most: int | None = None) -> Table:
    """The ranked items, at most `most`, with what is known of them; the caption says what the answer answers."""
    when = datetime.fromtimestamp(answer.event_time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    likely = ", ".join(
        f"{name} {p:.0%}" for name, p in sorted(answer.next_event.items(), key=lambda pair: -pair[1])[:3]
    )
    interests = ", ".join(f"{interest.label} {interest.weight:.0%}" for interest in answer.interests)
    view = Table(
        title=f"After event {answer.seq} of this user, {when}",
        caption=Text("\n").join(
            map(printable, (f"next event: {likely}", f"interests: {interests or '-'}", f"model {answer.model}"))
        ),
    )
    view.add_column("", justify="right")
    for heading, side in (("item", "left"), ("title", "left"), ("score", "right"), ("probability", "right")):
        view.add_column(heading, justify=side)  # type: ignore[arg-type]
    for place, ranked in enumerate(answer.items[:most], 1):
        item = known.get(ranked.item_id)
        title = ", ".join(filter(None, (item.title, item.category))) if item else ""
        view.add_row(
            str(place), printable(ranked.item_id), printable(title), f"{ranked.score:.2f}", f"{ranked.probability:.1%}"
        )
    return view
