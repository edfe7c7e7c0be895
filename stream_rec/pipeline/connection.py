"""Deprecated: moved to `stream_rec.kafka.connection`. This module goes with the next version."""

import warnings

from stream_rec.kafka.connection import access

__all__ = ("access",)

warnings.warn("stream_rec.pipeline.connection is now stream_rec.kafka.connection", DeprecationWarning, stacklevel=2)
