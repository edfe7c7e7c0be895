"""Streaming, real-time behaviour prediction on Kafka.

What a service imports is exported here; it loads neither torch nor faust. The rooms of the package are described in
docs/design.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream_rec.client import Erased, LatestRecommendations, Recommendations, latest
    from stream_rec.config import Settings, load_settings
    from stream_rec.errors import UserError
    from stream_rec.messages import Event, Interest, Item, RankedItem, Recommendation

__version__ = "0.1.0"

__all__ = (
    "Erased",
    "Event",
    "Interest",
    "Item",
    "LatestRecommendations",
    "RankedItem",
    "Recommendation",
    "Recommendations",
    "Settings",
    "UserError",
    "latest",
    "load_settings",
)

_HOME = {
    **dict.fromkeys(("Erased", "LatestRecommendations", "Recommendations", "latest"), "client"),
    **dict.fromkeys(("Settings", "load_settings"), "config"),
    **dict.fromkeys(("Event", "Interest", "Item", "RankedItem", "Recommendation"), "messages"),
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import stream_rec` and the commands start quickly."""
    if name not in _HOME:
        raise AttributeError(f"module 'stream_rec' has no attribute {name!r}")
    return getattr(import_module(f"stream_rec.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
