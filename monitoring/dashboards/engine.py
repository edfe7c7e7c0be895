"""What the workers' time and memory go to."""

from monitoring.dashboards.panels import CHOSEN, Dashboard, Limit, Panel, Row, Series, quantiles, rate, ratio

WORK = Row(
    "Steps",
    [
        Panel(
            "Batch",
            "Windows in one step.",
            "at batch_windows for long, a worker is behind: start another, or raise batch_windows on a GPU.",
            "short",
            [
                *quantiles("stream_rec_batch_windows", CHOSEN),
                Series("mean", ratio("stream_rec_batch_windows_sum", "stream_rec_batch_windows_count", CHOSEN)),
            ],
        ),
        Panel(
            "Step",
            "One step of the engine: plan, encode, score.",
            "steps of seconds: lower token_budget. Longer ones for the same tokens: something else uses the processor.",
            "s",
            quantiles("stream_rec_step_seconds", CHOSEN),
        ),
        Panel(
            "The model's thread, busy",
            "Share of the time that the engine computes, on the processor or the GPU.",
            "above 80% there is no room for a burst: start another worker, or use a GPU.",
            "percentunit",
            [Series("{{instance}}", rate("stream_rec_step_seconds_sum", "instance", CHOSEN))],
            Limit(0.8),
        ),
    ],
)

TOKENS = Row(
    "Tokens",
    [
        Panel(
            "Tokens",
            "Computed by the model: appended to a cached prefix, or prefilled.",
            "much prefill after a restart or a new model is normal; else see evictions.",
            "ops",
            [Series("{{kind}}", rate("stream_rec_tokens_total", "kind", CHOSEN))],
        ),
        Panel(
            "Tokens for one window",
            "What an event costs: about 1 with a full cache, the whole window without.",
            "near the capacity nothing comes from the cache: raise kv_cache_gb, or look for texts that change often.",
            "none",
            [Series("tokens", ratio("stream_rec_tokens_total", "stream_rec_batch_windows_sum", CHOSEN))],
        ),
        Panel(
            "Cached positions read",
            "What attention read of the cache: needed, or padding among rows of unlike length.",
            "more padding than needed: smaller batches waste less (batch_windows).",
            "ops",
            [Series("{{use}}", rate("stream_rec_attention_positions_total", "use", CHOSEN))],
        ),
    ],
)

CACHE = Row(
    "Cache",
    [
        Panel(
            "Served by a cached prefix",
            "Share of the windows of the last half hour, of all workers, and now, of those chosen.",
            "with evictions, raise kv_cache_gb (or kv_host_gb on a GPU); without, users are simply new.",
            "percentunit",
            [
                Series("half an hour", "stream_rec:cache_hits:ratio_rate30m"),
                Series(
                    "{{result}}",
                    f"{rate('stream_rec_cache_lookups_total', 'result', CHOSEN)} "
                    f"/ on () group_left () {rate('stream_rec_cache_lookups_total', of=CHOSEN)}",
                ),
            ],
        ),
        Panel(
            "Evictions",
            "Users who gave their place in the cache to another, and are encoded anew when they return.",
            "raise kv_cache_gb: it should hold the users who are active within minutes.",
            "ops",
            [Series("users", rate("stream_rec_cache_evictions_total", of=CHOSEN))],
        ),
        Panel(
            "Cached users",
            "Users whose keys and values are held.",
            "a fall to zero is a restart or a new model; else it should stand near what the memory holds.",
            "short",
            [Series("{{instance}}", f"stream_rec_cached_users{{{CHOSEN}}}")],
        ),
        Panel(
            "Memory of keys and values",
            "Of all cached users.",
            "compare with what the machine has before you raise kv_cache_gb; a change of model holds two caches.",
            "bytes",
            [
                Series(
                    "{{instance}}", f"stream_rec_cached_users{{{CHOSEN}}} * stream_rec_cache_bytes_per_user{{{CHOSEN}}}"
                )
            ],
        ),
    ],
)

KAFKA = Row(
    "Windows in, answers out",
    [
        Panel(
            "Windows",
            "Read, answered by a newer one of the same user, and learned from without being answered here.",
            "many that are coalesced: the worker is behind its users' bursts.",
            "ops",
            [
                Series("read", rate("stream_rec_windows_read_total", of=CHOSEN)),
                Series("answered by a newer one", rate("stream_rec_windows_coalesced_total", of=CHOSEN)),
                Series("learned", rate("stream_rec_windows_learned_total", of=CHOSEN)),
            ],
        ),
        Panel(
            "Lag by partition",
            "Windows that wait.",
            "one partition alone: a few users send most events. All of them: start another worker.",
            "short",
            [Series("{{partition}}", f"sum by (partition) (stream_rec_worker_lag_windows{{{CHOSEN}}})")],
        ),
        Panel(
            "Transaction",
            "From begin to commit: Kafka's share of the latency.",
            "the brokers are slow: look at their disks and at the replication of the topics.",
            "s",
            quantiles("stream_rec_commit_seconds", CHOSEN),
        ),
        Panel(
            "Transactions",
            "By outcome.",
            "a few fail when partitions move; failures that go on have a line each in the worker's log.",
            "ops",
            [Series("{{outcome}}", rate("stream_rec_transactions_total", "outcome", CHOSEN))],
        ),
    ],
)

EXACT = Row(
    "Exactness and model",
    [
        Panel(
            "Audit: windows",
            "Windows that were computed in full too, and those of them with other items, ties aside.",
            "other items must never be: go back to the version before, and report it with the model's card.",
            "ops",
            [
                Series("audited", rate("stream_rec_audited_windows_total", of=CHOSEN)),
                Series("other items", rate("stream_rec_audit_changed_total", of=CHOSEN)),
            ],
        ),
        Panel(
            "Audit: largest difference",
            "Of a user vector, since the model was read, and what rounding explains.",
            "beyond the tolerance an alert fires: go back to the version before, and report it.",
            "sci",
            [
                Series("difference", f"max(stream_rec_audit_largest_difference{{{CHOSEN}}})"),
                Series("tolerance", f"max(stream_rec_audit_tolerance{{{CHOSEN}}})"),
            ],
        ),
        Panel(
            "Age of the model",
            "Time since each worker read the model that it serves, and since the last event that it was trained on.",
            "train again, or look whether the trained model reaches the folder that the worker watches.",
            "s",
            [
                Series("read: {{instance}}", f"time() - stream_rec_model_loaded_timestamp_seconds{{{CHOSEN}}}"),
                Series(
                    "trained: {{instance}}", f"time() - stream_rec_model_trained_until_timestamp_seconds{{{CHOSEN}}}"
                ),
            ],
            Limit(14 * 86_400),
        ),
        Panel(
            "Models read",
            "Taken into service, and refused.",
            "the worker's log says in one line why a model was refused; the old one goes on.",
            "short",
            [Series("{{outcome}}", f"sum by (outcome) (stream_rec_model_loads_total{{{CHOSEN}}})")],
        ),
    ],
)

ENGINE = Dashboard(
    "engine",
    "Engine",
    "What the workers' time and memory go to: steps, tokens, cache, transactions.",
    [WORK, TOKENS, CACHE, KAFKA, EXACT],
    job="worker",
)
