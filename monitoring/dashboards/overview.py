"""Is it fine? One look at what somebody would be woken for, and where to look on."""

from monitoring.dashboards.panels import Dashboard, Limit, Panel, Row, Series, quantiles, rate

NUMBERS = Row(
    "Is it fine?",
    [
        Panel(
            "Alerts",
            "How many alerts fire.",
            "see which ones below; docs/operations.md has what each means and what to do first.",
            "short",
            [Series("firing", 'count(ALERTS{alertstate="firing"}) or vector(0)')],
            Limit(1),
            kind="stat",
        ),
        Panel(
            "Processes",
            "Agents and workers that answer to Prometheus.",
            "look why one is gone (its log, its /healthz); the others have taken its partitions over meanwhile.",
            "short",
            [Series("{{job}}", 'sum by (job) (up{job=~"agents|worker"})')],
            Limit(1, below=True),
            kind="stat",
        ),
        Panel(
            "Answers in time",
            "Share of the last hour's answers that came within 0.5 s of their event; the objective is 99%.",
            "is there a lag? Then more workers; else see the step and the transaction on the engine's dashboard.",
            "percentunit",
            [Series("in time", "1 - stream_rec:late_answers:ratio_rate1h")],
            Limit(0.99, below=True),
            kind="stat",
        ),
        Panel(
            "Hit rate@10, times the best floor's",
            "How many times as often as the best floor the prediction had the next item in its first ten, last hour.",
            "below 1 the model is not worth its cost: see the accuracy dashboard; train it with newer events.",
            "none",
            [
                Series(
                    "times",
                    "stream_rec:hit_rate_at_10:ratio_rate1h / max(stream_rec:floor_hit_rate_at_10:ratio_rate1h)",
                )
            ],
            Limit(1, below=True),
            kind="stat",
        ),
        Panel(
            "Dead letters",
            "Share of the last ten minutes' events that could not be read.",
            "the agents' dashboard has the reasons; the records' error header has the whole story.",
            "percentunit",
            [Series("share", "stream_rec:dead_letters:ratio_rate10m")],
            Limit(0.01),
            kind="stat",
        ),
        Panel(
            "Audit",
            "Windows whose cached answer differed from the answer of the whole window, last hour.",
            "this must never be: go back to the version before, and report it with the model's card.",
            "short",
            [Series("other items", "sum(increase(stream_rec_audit_changed_total[1h]))")],
            Limit(1),
            kind="stat",
        ),
    ],
)

FLOW = Row(
    "What goes through",
    [
        Panel(
            "Events and answers",
            "Events applied to windows, recommendations committed; bursts may be answered by their newest event alone.",
            "no events: ask the clients, then the agents. Events and no answers: the worker's log and its /readyz.",
            "ops",
            [
                Series("events", rate("stream_rec_events_total")),
                Series("answers", rate("stream_rec_recommendations_total")),
                Series("answered by a newer one", rate("stream_rec_windows_coalesced_total")),
            ],
        ),
        Panel(
            "Latency, event to committed answer",
            "From Kafka's timestamp of the event; the objective stands at 0.5 s.",
            "with lag, start workers; without, compare the step and the transaction on the engine's dashboard.",
            "s",
            quantiles("stream_rec_latency_seconds"),
            Limit(0.5),
        ),
        Panel(
            "Lag",
            "Records that wait for the agents and for the workers.",
            "if it only grows, start another process of that kind; as many as there are partitions can share the load.",
            "short",
            [
                Series("events", "sum(stream_rec_agent_lag_events)"),
                Series("windows", "sum(stream_rec_worker_lag_windows)"),
            ],
            Limit(1000),
        ),
    ],
)

PROMISES = Row(
    "What is promised",
    [
        Panel(
            "Burn rate of the latency budget",
            "How many times as many answers come late as the objective allows: at 1 a month's budget lasts a month.",
            "at 14.4 for an hour or 6 for six somebody is called; the latency's remedy applies.",
            "none",
            [
                Series("5 min", "stream_rec:late_answers:ratio_rate5m / 0.01"),
                Series("1 h", "stream_rec:late_answers:ratio_rate1h / 0.01"),
                Series("6 h", "stream_rec:late_answers:ratio_rate6h / 0.01"),
                Series("3 d", "stream_rec:late_answers:ratio_rate3d / 0.01"),
            ],
            Limit(1),
        ),
        Panel(
            "Hit rate@10 and the floors",
            "How often the next item was among the first ten, last hour; and what the tables alone would have hit.",
            "all fall: the shop has changed, or events are missing. Only the prediction falls: train the model again.",
            "percentunit",
            [
                Series("prediction", "stream_rec:hit_rate_at_10:ratio_rate1h"),
                Series("floor: {{floor}}", "stream_rec:floor_hit_rate_at_10:ratio_rate1h"),
            ],
        ),
        Panel(
            "Answers by model",
            "Which model answered. During a change two do, for a moment.",
            "two models for long: a worker could not take the new one; its log says why.",
            "ops",
            [Series("{{model}}", rate("stream_rec_recommendations_total", "model"))],
        ),
    ],
)

ALERTS = Row(
    "Alerts",
    [
        Panel(
            "Alerts that fire",
            "Each alert while it fires.",
            "docs/operations.md has a section for each, with the first thing to do.",
            "none",
            [Series("{{alertname}}", 'max by (alertname) (ALERTS{alertstate="firing"})')],
            Limit(1),
            kind="state-timeline",
        )
    ],
)

OVERVIEW = Dashboard(
    "overview", "Overview", "Is it fine? If not, the other dashboards say why.", [NUMBERS, FLOW, PROMISES, ALERTS]
)
