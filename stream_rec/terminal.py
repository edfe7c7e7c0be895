"""What came from a log or a topic, in a person's terminal."""

from rich.text import Text


def printable(text: str) -> Text:
    """No markup, no control characters, nothing that turns the line around."""
    return Text("".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text))
