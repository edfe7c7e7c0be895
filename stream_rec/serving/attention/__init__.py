"""Attention to cached keys and values on a GPU."""
