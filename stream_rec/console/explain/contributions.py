"""An explanation in words that people use: what parts come from, and how it stands to what was published."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stream_rec.messages import Recommendation

if TYPE_CHECKING:
    from stream_rec.ranking.explanation import Explanation

GROUPS = {
    "sequence model": ("decoder",),
    "what followed what": ("transitions", "reverse", "together"),
    "text": ("text", "words"),
    "popularity": ("popularity", "recency"),
    "own history": ("again", "session", "repeat"),
    "category, price": ("category", "price"),
}
NAMED = {part for parts in GROUPS.values() for part in parts}


def group_contributions(parts: Mapping[str, float]) -> dict[str, float]:
    """What each group adds to the score; a part of no group stands for itself, so that the sum stays."""
    sums = {name: sum(parts.get(part, 0.0) for part in members) for name, members in GROUPS.items()}
    return sums | {part: added for part, added in parts.items() if part not in NAMED}


def difference(explanation: "Explanation", answer: Recommendation | None) -> str:
    """How the explained answer stands to the published one, in words."""
    if answer is None:
        return "There is no published answer to compare with."
    if answer.seq != explanation.seq:
        return f"The published answer is to event {answer.seq}, the window stands at event {explanation.seq}."
    if answer.model != explanation.model:
        return f"The published answer is another model's, {answer.model}: this one explains what it would answer."
    ours = {why.item_id: why.score for why in explanation.items}
    same = [item for item in answer.items if item.item_id in ours]
    apart = max((abs(item.score - ours[item.item_id]) for item in same), default=0.0)
    first = [item.item_id for item in answer.items[:1]] == [why.item_id for why in explanation.items[:1]]
    return (
        f"{'The first item is' if first else 'The first item is NOT'} the published one's; "
        f"{len(same)} of the {len(answer.items)} published items are here, their scores within {apart:.2g}."
    )
