"""Attention of new tokens to their users' cached keys and values.

The tokens of a call stand one after the other, whoever's they are, so that the dense layers of the decoder compute no
padding at all; only attention tells users apart. It is registered with transformers under a name of its own, which
makes any decoder that uses transformers' attention interface incremental. (vLLM and its kin lay a batch out likewise.)

There are two backends with the same result, in `serving.attention`: on a CPU, `gather` copies what a group of rows
needs; on a GPU, `triton` reads the cache in place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "cached_rows"
"""The attention implementation to build a decoder with."""


class AttentionBackend(Protocol):
    """How a call attends."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """`query` (heads, tokens, head_dim), `keys` and `values` (places, kv_heads, head_dim) of a layer's whole cache.

        Returns (tokens, heads, head_dim).
        """


class AttentionMetadata(NamedTuple):
    """What one call writes and reads."""

    keys: Sequence[Tensor]
    """Of each layer, (places, kv_heads, head_dim)."""
    values: Sequence[Tensor]
    write: Tensor
    """The cache's place of each token, (tokens,)."""
    backend: AttentionBackend


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    ragged: AttentionMetadata | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a call's new tokens, (1, tokens, heads, head_dim), once their keys and values are in the cache.

    `query` (1, heads, tokens, head_dim); `key` and `value` (1, kv_heads, tokens, head_dim). Without `ragged` it is
    torch's ordinary attention over (batch, heads, length, head_dim).
    """
    if ragged is None:
        return sdpa_attention_forward(module, query, key, value, *args, **options)  # type: ignore[no-any-return]
    keys, values = ragged.keys[module.layer_idx], ragged.values[module.layer_idx]
    keys.index_copy_(0, ragged.write, key[0].transpose(0, 1).to(keys.dtype))
    values.index_copy_(0, ragged.write, value[0].transpose(0, 1).to(values.dtype))
    return ragged.backend(query[0], keys, values, options["scaling"])[None], None


AttentionInterface.register(NAME, attend)
