"""Every Prometheus metric: its name, labels and buckets.

The registry is passed in, so that tests and several parts in one process never share counters. No label ever holds a
user id or an item id.
"""

import math
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)
CUTOFFS = (1, 5, 10, 20)
"""The k of the live hit rate."""


class KnownGauge(Gauge):
    """A gauge that has no sample while its value is NaN: a rule then finds no series, rather than one of no number."""

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not math.isnan(sample.value)]
            yield family


class AgentMetrics:
    """What an agent process says about itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.events = Counter("stream_rec_events", "Events applied to a window", ["event_type"], registry=registry)
        self.dead_letters = Counter(
            "stream_rec_dead_letters", "Records sent to the dead-letter topic", ["reason"], registry=registry
        )
        self.repeats = Counter(
            "stream_rec_events_read_again", "Events read again after a restart, already applied", registry=registry
        )
        self.windows = Counter("stream_rec_windows_written", "Windows written", registry=registry)
        self.unreadable = Counter(
            "stream_rec_agent_windows_unreadable", "Windows in the table that were none", registry=registry
        )
        self.erased = Counter("stream_rec_users_erased", "Erasures applied", registry=registry)
        self.users_in_several = Counter(
            "stream_rec_users_in_several_partitions",
            "Users who began a window while another partition of this process held one of theirs",
            registry=registry,
        )
        self.users = Gauge("stream_rec_users", "Users with a window in this process", registry=registry)
        self.lag = Gauge(
            "stream_rec_agent_lag_events", "Events waiting in an assigned partition", ["partition"], registry=registry
        )
        self.failed_fetches = Counter(
            "stream_rec_agent_failed_fetches",
            "Fetches of a partition that Kafka could not read; each is tried again after a pause",
            registry=registry,
        )
        self.held_up = Gauge(
            "stream_rec_agent_held_up_seconds",
            "For how long an open transaction has kept the events behind it from being read",
            ["partition"],
            registry=registry,
        )
        self.seconds = Histogram(
            "stream_rec_agent_seconds",
            "From Kafka's timestamp of an event to its window being handed to the producer",
            buckets=SECONDS,
            registry=registry,
        )


class WorkerMetrics:
    """What a worker process says about itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.windows = Counter("stream_rec_windows_read", "Windows read", registry=registry)
        self.coalesced = Counter(
            "stream_rec_windows_coalesced", "Windows answered by a newer one of the same user", registry=registry
        )
        self.learned = Counter(
            "stream_rec_windows_learned",
            "Windows that taught the online memory without being answered here",
            registry=registry,
        )
        self.dead_letters = Counter(
            "stream_rec_worker_dead_letters",
            "Windows and items sent to the dead-letter topic",
            ["reason"],
            registry=registry,
        )
        self.failures = Counter(
            "stream_rec_failures",
            "Failures beside the answers, which go on; each is tried again",
            ["part"],
            registry=registry,
        )
        for part in ("items", "text encoder", "text cache", "statistics", "snapshot", "measurement"):
            self.failures.labels(part)  # shown before the first one: a rate needs a zero
        self.unwritten = Counter(
            "stream_rec_worker_dead_letters_unwritten",
            "Dead letters of items that Kafka did not take",
            registry=registry,
        )
        self.failed_fetches = Counter(
            "stream_rec_worker_failed_fetches",
            "Fetches of a partition that Kafka could not read; each is tried again after a pause",
            registry=registry,
        )
        self.recommendations = Counter(
            "stream_rec_recommendations", "Recommendations committed", ["model"], registry=registry
        )
        self.transactions = Counter(
            "stream_rec_transactions", "Transactions by outcome", ["outcome"], registry=registry
        )
        self.lag = Gauge(
            "stream_rec_worker_lag_windows",
            "Windows waiting in an assigned partition",
            ["partition"],
            registry=registry,
        )
        self.batch = Histogram("stream_rec_batch_windows", "Windows in one step", buckets=SIZES, registry=registry)
        self.tokens = Counter(
            "stream_rec_tokens",
            "Tokens computed: appended to a cached prefix, prefilled, or to fill up calls on a GPU",
            ["kind"],
            registry=registry,
        )
        self.positions = Counter(
            "stream_rec_attention_positions",
            "Cached positions read: needed, or padding among rows of unlike length",
            ["use"],
            registry=registry,
        )
        self.cache = Counter(
            "stream_rec_cache_lookups", "Windows by whether a cached prefix served them", ["result"], registry=registry
        )
        self.evictions = Counter("stream_rec_cache_evictions", "Users evicted from the cache", registry=registry)
        self.cached_users = Gauge("stream_rec_cached_users", "Users with cached keys and values", registry=registry)
        self.bytes_per_user = Gauge(
            "stream_rec_cache_bytes_per_user", "Bytes of keys and values a user", registry=registry
        )
        self.model_loads = Counter(
            "stream_rec_model_loads",
            "Models taken into service, refused, and given up for the one before",
            ["outcome"],
            registry=registry,
        )
        self.model_loaded = Gauge(
            "stream_rec_model_loaded_timestamp_seconds",
            "When the model that serves was read, seconds since 1970",
            registry=registry,
        )
        self.trained_until = KnownGauge(
            "stream_rec_model_trained_until_timestamp_seconds",
            "Time of the last event that the model was trained on, seconds since 1970; absent if its log had no times",
            registry=registry,
        )
        self.trained_until.set(math.nan)  # until a model has been read
        self.drift = Gauge(
            "stream_rec_drift",
            "Population stability index of late events against the model's validation",
            ["of"],
            registry=registry,
        )
        self.audited = Counter(
            "stream_rec_audited_windows", "Windows that were computed in full too, and compared", registry=registry
        )
        self.audit_changed = Counter(
            "stream_rec_audit_changed", "Audited windows with other items in full, ties aside", registry=registry
        )
        self.audit_tolerance = Gauge(
            "stream_rec_audit_tolerance",
            "Largest difference that rounding explains",
            registry=registry,
        )
        self.audit_difference = Gauge(
            "stream_rec_audit_largest_difference",
            "Largest difference of an audited user vector since the model was read",
            registry=registry,
        )
        self.index_sampled = Counter(
            "stream_rec_index_sampled_items",
            "Items that were found without the index too, to compare",
            registry=registry,
        )
        self.index_recalled = Counter(
            "stream_rec_index_recalled_items", "Those of them that the index found", registry=registry
        )
        self.step_seconds = Histogram("stream_rec_step_seconds", "One engine step", buckets=SECONDS, registry=registry)
        self.commit_seconds = Histogram(
            "stream_rec_commit_seconds", "One transaction, from begin to commit", buckets=SECONDS, registry=registry
        )
        self.latency = Histogram(
            "stream_rec_latency_seconds",
            "From Kafka's timestamp of an event to the commit of the recommendation that answers it",
            buckets=SECONDS,
            registry=registry,
        )
        self.unknown_items = Counter(
            "stream_rec_unknown_item_events", "Events of an item that the catalogue does not know", registry=registry
        )
        self.untaught = Counter(
            "stream_rec_unlearned_events",
            "Events that taught the statistics nothing because their user had taught learn_per_day",
            registry=registry,
        )
        self.items = Gauge(
            "stream_rec_items", "Items in the catalogue, by availability", ["available"], registry=registry
        )
        self.unusable_items = Gauge(
            "stream_rec_unusable_items",
            "Items that are never recommended, because the model makes numbers of them that are not finite",
            registry=registry,
        )
        self.unscored = Counter(
            "stream_rec_unscored_candidates",
            "Candidates left out of an answer because their score was no finite number",
            registry=registry,
        )
        self.upserts = Counter("stream_rec_item_upserts", "Items added or changed while serving", registry=registry)
        self.evaluated = Counter(
            "stream_rec_evaluated_events",
            "Events compared with an earlier prediction",
            ["event_type"],
            registry=registry,
        )
        self.too_late = Counter(
            "stream_rec_too_late_events",
            "Events that arrived before the prediction for them was committed: not evaluated",
            ["event_type"],
            registry=registry,
        )
        self.hits = Counter(
            "stream_rec_hits",
            "Evaluated events whose item was among the first k",
            ["event_type", "k"],
            registry=registry,
        )
        self.reciprocal_rank = Counter(
            "stream_rec_reciprocal_rank",
            "Sum of reciprocal ranks of evaluated events",
            ["event_type"],
            registry=registry,
        )
        self.floor_evaluated = Counter(
            "stream_rec_floor_evaluated_events", "Events compared with a floor", ["floor"], registry=registry
        )
        self.floor_hits = Counter(
            "stream_rec_floor_hits",
            "Of them, those whose item was among the floor's first k",
            ["floor", "k"],
            registry=registry,
        )
        self.floor_reciprocal_rank = Counter(
            "stream_rec_floor_reciprocal_rank",
            "Sum of reciprocal ranks of the floor, 0 beyond the last k",
            ["floor"],
            registry=registry,
        )
