"""An event in words: what a language model that reads text is given of it. No torch, no tokenizer."""

import string

from msgspec import Struct

from stream_rec.features.text_encoder import category_words
from stream_rec.messages import Item

FIELDS = ("event", "title", "category", "brand", "price")


class EventTemplate(Struct, frozen=True):
    """How an event is told. Raises `ValueError` for a template with other fields than `FIELDS`, or none."""

    template: str = "{event} {title}, {category}"
    limit: int = 16
    """Most tokens an event, its end included; longer ones are cut."""

    def __post_init__(self) -> None:
        try:
            parsed = [part[1:] for part in string.Formatter().parse(self.template) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"the template {self.template!r} can't be read: {error}") from None
        if not parsed or any(name not in FIELDS or form or conversion for name, form, conversion in parsed):
            named = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise ValueError(
                f"the template {self.template!r} may hold {named} and plain text, and at least one of them"
            )
        if not 2 <= self.limit <= 256:
            raise ValueError(f"an event of at most {self.limit} tokens: give 2 to 256")

    def render(self, event_type: str, item: Item) -> str:
        """The words of an event, on one line; an item without a title is called by its id.

        >>> EventTemplate().render("add_to_cart", Item("1", title="trail shoe", category="sport.shoes"))
        'add to cart trail shoe, sport shoes'
        >>> EventTemplate().render("view", Item("1"))
        'view 1'
        """
        told = self.template.format(
            event=event_type.replace("_", " "),
            title=item.title or item.item_id,
            category=category_words(item.category),
            brand=item.brand,
            price="" if item.price is None else f"{item.price:g}",
        )
        return " ".join(told.split()).strip(" ,;")
