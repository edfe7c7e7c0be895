"""Deprecated: moved to `stream_rec.client`. This module goes with the next version."""

import warnings

from stream_rec.client import Erased, LatestRecommendations, Recommendations, latest, titles

__all__ = (
    "Erased",
    "LatestRecommendations",
    "Recommendations",
    "latest",
    "titles",
)

warnings.warn("stream_rec.pipeline.client is now stream_rec.client", DeprecationWarning, stacklevel=2)
