"""Events in, windows out, and what could not be read."""

from monitoring.dashboards.panels import CHOSEN, Dashboard, Limit, Panel, Row, Series, quantiles, rate

INGEST = Row(
    "Events in, windows out",
    [
        Panel(
            "Events",
            "Applied to a window, by event type.",
            "one type is missing: ask its client; all are: see the lag, then the clients.",
            "ops",
            [Series("{{event_type}}", rate("stream_rec_events_total", "event_type", CHOSEN))],
        ),
        Panel(
            "Windows",
            "Written to the windows topic.",
            "fewer windows than events: see the erasures; more cannot be.",
            "ops",
            [Series("written", rate("stream_rec_windows_written_total", of=CHOSEN))],
        ),
        Panel(
            "Event to window",
            "From Kafka's timestamp of the event to its window being handed to the producer.",
            "with lag, start another agent; without, its processor is busy with something else.",
            "s",
            quantiles("stream_rec_agent_seconds", CHOSEN),
        ),
        Panel(
            "Lag by partition",
            "Events that wait.",
            "one partition alone: a few users send most events. All of them: start another agent.",
            "short",
            [Series("{{partition}}", f"sum by (partition) (stream_rec_agent_lag_events{{{CHOSEN}}})")],
        ),
    ],
)

RECOVERY = Row(
    "Recovery",
    [
        Panel(
            "Agents",
            "Which agents answer to Prometheus.",
            "one is gone: its partitions move within seconds; see its log, and start it again.",
            "short",
            [Series("{{instance}}", f'up{{job="agents", {CHOSEN}}}')],
        ),
        Panel(
            "Users",
            "Users with a window in each agent.",
            "a drop is a rebalance, its users are at another agent; growth without end: set store=rocksdb.",
            "short",
            [Series("{{instance}}", f"stream_rec_users{{{CHOSEN}}}")],
        ),
        Panel(
            "Events read again",
            "Events after the last commit of an agent that ended, met again and found already applied.",
            "a peak after a restart is normal; without one, agents lose their group: see their logs.",
            "ops",
            [Series("events", rate("stream_rec_events_read_again_total", of=CHOSEN))],
        ),
        Panel(
            "Erasures",
            "Users whose window was erased on request.",
            "more than people can ask for: look at who writes events of the type erase.",
            "ops",
            [Series("users", rate("stream_rec_users_erased_total", of=CHOSEN))],
        ),
        Panel(
            "Users in several partitions",
            "Users whose events come by more than one partition of an agent: they have a window in each.",
            "clients that write events use different partitioners: see Partitions in docs/downstream.md.",
            "short",
            [Series("users", f"sum(stream_rec_users_in_several_partitions_total{{{CHOSEN}}})")],
            Limit(1),
        ),
    ],
)

DEAD = Row(
    "Dead letters",
    [
        Panel(
            "Events, by reason",
            "Events that could not be used: they are in the dead-letter topic, with the error in a header.",
            "docs/bad-input.md has a table of the reasons; one client's release is the usual cause.",
            "ops",
            [Series("{{reason}}", rate("stream_rec_dead_letters_total", "reason", CHOSEN))],
        ),
        Panel(
            "Share of the events",
            "Dead letters among the events of the last ten minutes, all agents.",
            "an alert fires above 1%. Repair the client; then write the records again.",
            "percentunit",
            [Series("share", "stream_rec:dead_letters:ratio_rate10m")],
            Limit(0.01),
        ),
        Panel(
            "Windows and items, by reason",
            "What the workers could not read. Each worker reads all items, and buries a bad one for itself.",
            "windows: something else writes to the windows topic. Items: repair whoever publishes them.",
            "short",
            [
                Series("{{reason}}", "sum by (reason) (stream_rec_worker_dead_letters_total)"),
                Series("not written", "sum(stream_rec_worker_dead_letters_unwritten_total)"),
            ],
        ),
        Panel(
            "Fetches that failed",
            "Fetches of a partition that Kafka answers it can't read. Each is tried again, after up to ten seconds.",
            "most likely a broker's disk is damaged: /readyz names the partition, the broker's log the file.",
            "ops",
            [
                Series("agents", rate("stream_rec_agent_failed_fetches_total")),
                Series("workers", rate("stream_rec_worker_failed_fetches_total")),
            ],
        ),
        Panel(
            "Windows in the table that were none",
            "Their users began anew.",
            "nothing but agents may write to the windows topic: find out what does.",
            "short",
            [Series("windows", f"sum(stream_rec_agent_windows_unreadable_total{{{CHOSEN}}})")],
            Limit(1),
        ),
    ],
)

AGENTS = Dashboard(
    "agents",
    "Agents",
    "Events in, windows out; what was read again, and what could not be read.",
    [INGEST, RECOVERY, DEAD],
    job="agents",
)
