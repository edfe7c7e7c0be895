"""The engine that settings describe. Torch is imported by the call: a process that waits for Kafka needs none."""

from typing import TYPE_CHECKING

from stream_rec.config import Settings
from stream_rec.runtime.process import limit_openmp_spinning

if TYPE_CHECKING:
    from stream_rec.serving.engine import Engine


def load_engine(settings: Settings) -> "Engine":
    """The engine of the settings' model, loaded on the calling thread; importing torch alone takes seconds."""
    limit_openmp_spinning()
    from stream_rec.serving.engine import Engine, Limits

    return Engine.load(
        settings.model,
        settings.cache_dir,
        Limits(
            stride=settings.stride,
            token_budget=settings.token_budget,
            kv_cache_bytes=settings.kv_cache_gb * 1e9,
            kv_cache_share=settings.kv_cache_share,
            kv_host_bytes=settings.kv_host_gb * 1e9,
            dtype=settings.dtype,
            top_k=settings.top_k,
            interests_k=settings.interests_k,
            scoring=settings.index,
            index_effort=settings.index_effort,
            recall_share=settings.recall_share,
            learn_per_day=settings.learn_per_day,
            exclude_seen=settings.exclude_seen,
            categories=frozenset(settings.categories),
            diversity=settings.diversity,
            audit_share=settings.audit_share,
        ),
        settings.device,
        settings.threads,
    )
