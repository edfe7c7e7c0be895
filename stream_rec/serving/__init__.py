"""The engine: windows in, recommendations out, encoded incrementally with cached keys and values."""
