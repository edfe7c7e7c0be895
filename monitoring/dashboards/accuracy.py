"""How good the predictions are, on live events, beside the floors."""

from monitoring.dashboards.panels import Dashboard, Limit, Panel, Row, Series, rate, ratio

RARE = "5m"
"""Few events are compared in seconds: a rate over less would jump."""


def share(part: str, whole: str, by: str, of: str) -> str:
    """Of a counter without values yet, 0."""
    total = rate(whole, by)
    return f"({rate(part, by, of)} or 0 * {total}) / {total}"


HIT_RATES = Row(
    "Hit rate",
    [
        Panel(
            "Hit rate@10 by event type, and of the floors",
            "Share of the events whose item was among the first ten of the prediction made before them; and among "
            "those of what followed the last item (markov), of what is popular, and popular now (recent).",
            "below a floor, train again with newer events; if one event type alone fell, ask its client what changed.",
            "percentunit",
            [
                Series(
                    "{{event_type}}",
                    share("stream_rec_hits_total", "stream_rec_evaluated_events_total", "event_type", 'k="10"'),
                ),
                Series(
                    "floor: {{floor}}",
                    share("stream_rec_floor_hits_total", "stream_rec_floor_evaluated_events_total", "floor", 'k="10"'),
                ),
            ],
            interval=RARE,
        ),
        Panel(
            "Hit rate@k",
            "Over all event types.",
            "if @1 falls and @20 stays, only the order is worse: the blend's weights may be old, train again.",
            "percentunit",
            [
                Series(
                    "@{{k}}",
                    f"{rate('stream_rec_hits_total', 'k')} "
                    f"/ on () group_left () {rate('stream_rec_evaluated_events_total')}",
                )
            ],
            interval=RARE,
        ),
        Panel(
            "Mean reciprocal rank",
            "Mean of 1 / place of the item in the prediction, and in the lists of the floors.",
            "as with the hit rate: all fall, the shop has changed; only the prediction falls, the model is old.",
            "percentunit",
            [
                Series("prediction", ratio("stream_rec_reciprocal_rank_total", "stream_rec_evaluated_events_total")),
                Series(
                    "floor: {{floor}}",
                    f"{rate('stream_rec_floor_reciprocal_rank_total', 'floor')} "
                    f"/ {rate('stream_rec_floor_evaluated_events_total', 'floor')}",
                ),
            ],
            interval=RARE,
        ),
    ],
)

TREND = Row(
    "Trend",
    [
        Panel(
            "Hit rate@10, times the best floor's",
            "How many times as often as the best floor the prediction hit, last hour.",
            "below 1 for long the tables alone would do better: train again, and see the blend in the model's card.",
            "none",
            [
                Series(
                    "times",
                    "stream_rec:hit_rate_at_10:ratio_rate1h / max(stream_rec:floor_hit_rate_at_10:ratio_rate1h)",
                )
            ],
            Limit(1, below=True),
        ),
        Panel(
            "Hit rate@10 against the day",
            "The last half hour against the last day; an alert fires below half of the day's.",
            "a sudden fall is rarely the model: look for a change of item ids, a missing event type, a new client.",
            "percentunit",
            [
                Series("half an hour", "stream_rec:hit_rate_at_10:ratio_rate30m"),
                Series("day", "stream_rec:hit_rate_at_10:ratio_rate1d"),
            ],
        ),
        Panel(
            "Events compared",
            "Events of which an earlier prediction was held: what the rates rest on.",
            "few compared among many events: users come once, or workers restart often and forget what they predicted.",
            "ops",
            [Series("{{event_type}}", rate("stream_rec_evaluated_events_total", "event_type"))],
        ),
        Panel(
            "Predicted too late",
            "Of the events with an answer to an earlier event of their user, the share where that answer was committed "
            "only after the event had arrived. The hit rates leave these events out.",
            "it grows with lag and latency: see the Overview. With none of either, compare the clocks of the event's "
            "producers with the workers'.",
            "percentunit",
            [
                Series(
                    "too late",
                    f"({rate('stream_rec_too_late_events_total')} or vector(0)) "
                    f"/ (({rate('stream_rec_too_late_events_total')} or vector(0)) "
                    f"+ ({rate('stream_rec_evaluated_events_total')} or vector(0)))",
                )
            ],
            interval=RARE,
        ),
        Panel(
            "Drift",
            "How unlike those that the model was validated on the events of late are: population stability indices of "
            "their items, their types and the scores. 0 is alike.",
            "above 0.1 see which one moved; above 0.25 train further with newer events. docs/metrics.md tells more.",
            "none",
            [Series("{{of}}", "max by (of) (stream_rec_drift)")],
            Limit(0.25),
        ),
    ],
)

CATALOGUE = Row(
    "Catalogue",
    [
        Panel(
            "Items",
            "Items in the catalogue, by whether they may be recommended.",
            "if available items vanish, something withdraws them: read the newest records of the items topic.",
            "short",
            [Series("available: {{available}}", "max by (available) (stream_rec_items)")],
        ),
        Panel(
            "Upserts",
            "Items added or changed while serving.",
            "each new text is encoded: if a bulk change slows answers, publish it more slowly.",
            "ops",
            [Series("items", rate("stream_rec_item_upserts_total"))],
        ),
        Panel(
            "Events of unknown items",
            "Events of items that the catalogue does not know, for each window that is answered.",
            "publish the missing items: the model reads them all as one and the same, and can't recommend them.",
            "percentunit",
            [Series("unknown", ratio("stream_rec_unknown_item_events_total", "stream_rec_batch_windows_sum"))],
            interval=RARE,
        ),
        Panel(
            "Events that teach nothing",
            "Events of users who have taught the statistics learn_per_day, for each window that is answered.",
            "a robot, or somebody who pushes an item: the events are answered, but change no answers to others.",
            "percentunit",
            [Series("left out", ratio("stream_rec_unlearned_events_total", "stream_rec_batch_windows_sum"))],
            interval=RARE,
        ),
        Panel(
            "Items left out",
            "Items whose vector the model turns into numbers that are not finite, and candidates, for each window that "
            "is answered, whose score was not finite. Both are left out of the answers; the others are ranked without "
            "them.",
            "above 0 the catalogue's vectors or the model are damaged: go back to the model before, and train again.",
            "short",
            [
                Series("items", "max(stream_rec_unusable_items)"),
                Series("candidates", ratio("stream_rec_unscored_candidates_total", "stream_rec_batch_windows_sum")),
            ],
            interval=RARE,
        ),
        Panel(
            "Found by the index",
            "Share of the best items that the index found too, where one is used (beyond 50,000 items on a CPU).",
            "raise index_effort: more is found, and a step takes longer. An alert fires below 95%.",
            "percentunit",
            [Series("recall", ratio("stream_rec_index_recalled_items_total", "stream_rec_index_sampled_items_total"))],
            Limit(0.95, below=True),
            interval=RARE,
        ),
    ],
)

ACCURACY = Dashboard(
    "accuracy",
    "Accuracy",
    "Events are compared with the newest prediction committed before them, and only then learned from.",
    [HIT_RATES, TREND, CATALOGUE],
)
