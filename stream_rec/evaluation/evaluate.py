"""Evaluates a finished model on events that it has not seen: every figure, by kind of event and user, beside baselines.

Also what is right for a prediction, what the user had met before it, and what diversity costs: how right the first
items are when maximal marginal relevance chooses them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.data.dataset import Dataset
from stream_rec.errors import UserError
from stream_rec.evaluation import metrics, proper_scores
from stream_rec.evaluation.metrics import CUT, MISSED, Lists, Ranks
from stream_rec.evaluation.predict import Predicted, exact_retriever, find, predict, probable, states_at, teach
from stream_rec.evaluation.predict import ranks as ranks_of
from stream_rec.evaluation.proper_scores import Mass
from stream_rec.evaluation.splits import BASKETS, Protocol, Split, first_of_basket, same_time
from stream_rec.features.online_statistics import OnlineStatistics
from stream_rec.features.text_encoder import TextEncoder
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.models.model_store import Model
from stream_rec.ranking.blend import BARRED, Blend, CandidateTable, Scored
from stream_rec.ranking.candidate_features import PARTS
from stream_rec.ranking.diversity import diverse
from stream_rec.ranking.ranker import MMR_POOL_FACTOR, RankingConfig
from stream_rec.ranking.retrieval import NEAREST
from stream_rec.runtime.progress import Progress
from stream_rec.training import blend_fit, goal_head, trainer
from stream_rec.training.config import TrainConfig
from stream_rec.training.prepare import Prepared, reopen
from stream_rec.window import stride_of

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Of `diversity`, the setting; 0 is the blend's own list."""
Varied = Mapping[float, Numbers]
"""The first items of each answer by strength, (answers, CUT) each."""
BASELINES = {"popularity": "popularity", "recency": "recent popularity", "transitions": "Markov"}
"""Parts that are what a prediction must beat: counters, without any training."""
BLEND = "blend"
LENGTHS = {
    "1 event": (1, 1),
    "2 events": (2, 2),
    "3 events": (3, 3),
    "4 to 9 events": (4, 9),
    "10 or more": (10, 1 << 40),
}
TOP = 20
Seen = Literal["keep", "window", "ever"]
"""Which of the items that a user has met are left out: none, those in the window, as serving does with `exclude_seen`,
or all that the log has, as published evaluations do."""


def relevant_items(data: Dataset, places: Numbers, *, baskets: bool) -> tuple[Numbers, Numbers]:
    """What is right for each prediction: whose it is, ascending, and the row; the rows of a basket count once."""
    if not baskets:
        return np.arange(len(places)), data.rows[places]
    of, rows = [], []
    ends = data.begins[data.user_of(places) + 1]
    for number, (place, end) in enumerate(zip(places.tolist(), ends.tolist(), strict=True)):
        until = place + int(np.searchsorted(data.times[place:end], data.times[place], side="right"))
        basket = np.unique(data.rows[place:until])
        of.append(np.full(len(basket), number))
        rows.append(basket)
    return np.concatenate(of), np.concatenate(rows)


def seen_before(data: Dataset, places: Numbers, table: CandidateTable) -> NDArray[np.bool_]:
    """Which candidates the user had met before, ever, (candidates,)."""
    wide = int(max(data.rows.max(), table.rows.max())) + 1
    begins = data.begins[data.user_of(places)]
    held = [
        number * wide + data.rows[begin:place] for number, (begin, place) in enumerate(zip(begins, places, strict=True))
    ]
    return np.isin(table.answers.numpy() * wide + table.rows.numpy(), np.concatenate(held))


def repeats(data: Dataset) -> float:
    """Share of the events whose item the user had met before."""
    users = np.repeat(np.arange(len(data.begins) - 1), np.diff(data.begins))
    pairs = users * (int(data.rows.max()) + 1) + data.rows
    return 1 - len(np.unique(pairs)) / len(pairs)


def diverse_lists(table: CandidateTable, values: Tensor, outputs: Tensor, strengths: Sequence[float]) -> Varied:
    """Chooses by the candidates' `values` (candidates,), as serving does; `outputs` (rows, width)."""
    scores, rows = table.spread(values, BARRED), table.spread(table.rows, UNKNOWN)
    best = scores.topk(min(MMR_POOL_FACTOR * RankingConfig().top_k, scores.shape[1]), dim=1)
    unused = scores.new_zeros(len(scores), 0)
    pool = Scored(rows.gather(1, best.indices), best.values, best.values, unused, unused.sum(dim=1))
    return {strength: _listed(diverse(pool, outputs, CUT, strength)) for strength in strengths}


def _listed(chosen: Scored) -> Numbers:
    found: Numbers = chosen.rows.masked_fill(chosen.scores <= BARRED, UNKNOWN).numpy()
    return found


def joined_lists(parts: Sequence[Varied]) -> Varied:
    """The lists of all answers in one."""
    return {strength: np.concatenate([part[strength] for part in parts]) for strength in parts[0]}


def diversity_figures(
    lists: Numbers, of: Numbers, rows: Numbers, vectors: NDArray[np.float32], available: int
) -> dict[str, float]:
    """Of `lists` (answers, CUT), where `rows` (right,) are right in the answers `of` (right,).

    `vectors` (catalogue rows, dim) are the items'; `available` is how many items there are.
    """
    hit = (lists[of] == rows[:, None]) & (rows != UNKNOWN)[:, None]
    ranks = Ranks(of, np.where(hit.any(axis=1), hit.argmax(axis=1), MISSED), len(lists))
    found, shown = metrics.figures(ranks), Lists(lists)
    kept = {name: found[name] for name in (f"hr_at_{CUT}", f"ndcg_at_{CUT}")}
    told = kept | {"intra_list_diversity": shown.diversity(vectors), "coverage": shown.coverage(available)}
    return {name: round(value, 4) for name, value in told.items()}


class EvaluationPlan(NamedTuple):
    """How a model is evaluated."""

    protocol: Protocol
    stride: int | None
    """How far a served window moves, events; None: half of what the model reads."""
    seen: Seen = "keep"
    baskets: bool | None = None
    """Whether what a user does at one time is predicted in one; None: if that is most of what they do."""
    after: float = 0.0
    """Share of the log after which predictions begin. What lies between it and what the model knows is learned from,
    if the memory learns on, and not predicted."""


class SplitPredictions(NamedTuple):
    """The predictions of one split, and what was right."""

    ranks: dict[str, Ranks]
    """Of the blend, of each part alone."""
    first: "TopPredictions"
    mass: Mass
    places: Numbers
    """Of the (first) event that was predicted, (predictions,)."""
    right: Numbers
    """The row of each right item, (right,), in the order of the ranks."""
    varied: Varied


class TopPredictions(NamedTuple):
    """The first items of each answer of the blend, (predictions, TOP) each."""

    rows: Numbers
    probabilities: NDArray[np.float32]
    happened: NDArray[np.bool_]
    """Whether the item was right."""

    @classmethod
    def of(cls, shares: Tensor, candidates: Tensor, right_of: Numbers, right_rows: Numbers) -> "TopPredictions":
        """By the `shares` of `candidates` (batch, most). A catalogue with fewer items is filled up with the unknown."""
        best = F.pad(shares, (0, TOP)).topk(TOP, dim=1)
        rows = F.pad(candidates, (0, TOP), value=UNKNOWN).gather(1, best.indices).numpy()
        probabilities = best.values.numpy()
        wide = int(max(rows.max(), right_rows.max())) + 1
        happened = np.isin(np.arange(len(rows))[:, None] * wide + rows, right_of * wide + right_rows)
        return cls(rows, probabilities, happened)


def run(
    model: Model,
    frame: pl.DataFrame,
    plan: EvaluationPlan,
    texts: TextEncoder,
    progress: Progress,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """All figures of `model` on `frame` (user, item, event, time). Raises `UserError` if nothing is held out."""
    prepared = reopen(model, frame, texts)._replace(device=device)
    data = prepared.data
    capacity = model.config.capacity
    config = TrainConfig(encoder=model.config.encoder, capacity=capacity, stride=stride_of(capacity, plan.stride))
    split, known = split_of(data, model, plan.protocol)
    baskets = same_time(data) > BASKETS if plan.baskets is None else plan.baskets
    split = split._replace(targets=split.targets[data.order[split.targets] >= plan.after * len(data.rows)])
    if baskets:
        split = split._replace(targets=first_of_basket(data, split.targets))
    if not len(split.targets):
        raise UserError("the log holds nothing that the model has not seen: train it with the same --protocol")
    states = states_at(model.encoder, prepared, split.targets, config)
    nearest = exact_retriever(model.encoder, prepared)

    def outcome(online: bool, strengths: Sequence[float], what: str) -> SplitPredictions:
        memory = OnlineStatistics(model.config.horizons, model.config.remembers_until)
        memory.load(model.memory)
        teach(prepared, memory, data.in_log_order(known & (data.times > model.config.remembers_until)))
        predicted = predict(
            *(prepared, split._replace(online=online), memory, lambda which: nearest(states[which], NEAREST), config),
            lambda done: progress(what, done, len(split.targets)),
        )
        weights, outputs = model.config.blend, nearest.outputs
        return collect(predicted, prepared, weights, outputs, strengths, baskets=baskets, seen=plan.seen)

    found = outcome(split.online, STRENGTHS, "predicting")
    frozen = outcome(False, (), "predicting, memory frozen") if split.online else found
    users = trainer.users_of(model.encoder, prepared, states, split.targets)
    figures = report(prepared, found, frozen, known, baskets=baskets, seen=plan.seen)
    return figures | {"probabilities": probability_report(model, prepared, users, nearest.outputs, found, known)}


def split_of(data: Dataset, model: Model, protocol: Protocol) -> tuple[Split, NDArray[np.bool_]]:
    """What is predicted, and what the model knew, (events,)."""
    if protocol == "leave-one-out":
        split = Split.leave_last_n(data, 1)
        return split, split.known
    known = data.times <= model.config.trained_until
    return Split.at_time(data, int(known.sum()), len(data.rows), online=protocol == "prequential"), known


def collect(
    asked: Iterator[Predicted],
    prepared: Prepared,
    weights: Blend,
    outputs: Tensor,
    strengths: Sequence[float],
    *,
    baskets: bool,
    seen: Seen,
) -> SplitPredictions:
    """Ranks what was right, by the blend and by each part alone, and what the blend's lists would be with diversity.

    `strengths` are those of the diversity, and `outputs` (rows, width) say which items are alike. What is left out of
    the window keeps its probability, as in serving: it takes no place in a list.
    """
    data, categories = prepared.data, prepared.catalog.categories
    scores = {BLEND: weights, **{part: blend_fit.alone(part) for part in PARTS}}
    of: list[Numbers] = []
    ranks: dict[str, list[Numbers]] = {name: [] for name in scores}
    first: list[TopPredictions] = []
    masses: list[Mass] = []
    places: list[Numbers] = []
    rights: list[Numbers] = []
    varied: list[Varied] = []
    for places_now, table in asked:
        begin = sum(map(len, places))
        right_of, right_rows = relevant_items(data, places_now, baskets=baskets)
        truth = find(table, right_of, right_rows)
        barred, left_out = table.rows == UNKNOWN, torch.zeros(len(table.rows), dtype=torch.bool)
        if seen == "ever":
            barred |= torch.from_numpy(seen_before(data, places_now, table))
        elif seen == "window":
            left_out = table.seen
        of.append(right_of + begin)
        places.append(places_now)
        rights.append(right_rows)
        said = (table.columns @ weights.weights).masked_fill_(barred, BARRED)
        barred |= left_out
        values = {name: (table.columns @ one.weights).masked_fill_(barred, BARRED) for name, one in scores.items()}
        for name, found in values.items():
            ranks[name].append(ranks_of(table, found, torch.from_numpy(right_of), truth).numpy())
        shares, candidates = probable(table, said, weights.covered)
        listed = shares.masked_fill(table.spread(left_out, False), 0)
        first.append(TopPredictions.of(listed, candidates, right_of, right_rows))
        masses.append(Mass.of(shares, candidates, data.rows[places_now], categories))
        varied.append(diverse_lists(table, values[BLEND], outputs, strengths))
    whose, count = np.concatenate(of), sum(map(len, places))
    return SplitPredictions(
        {name: Ranks(whose, np.concatenate(found), count) for name, found in ranks.items()},
        TopPredictions(*map(np.concatenate, zip(*first, strict=True))),
        Mass.joined(masses),
        np.concatenate(places),
        np.concatenate(rights),
        joined_lists(varied),
    )


def report(
    prepared: Prepared,
    live: SplitPredictions,
    frozen: SplitPredictions,
    known: NDArray[np.bool_],
    *,
    baskets: bool,
    seen: Seen,
) -> dict[str, Any]:
    """The figures of an evaluation; `known` (events,) is what the model had seen."""
    data, ours = prepared.data, live.ranks[BLEND]
    user = data.user_of(live.places)
    before = live.places - data.begins[user]
    new = ~np.isin(data.rows[live.places], data.rows[known])
    same = data.times[live.places] == data.times[live.places - 1]
    counts = np.bincount(data.rows[known], minlength=len(prepared.catalog)).astype(np.float64)
    lists, vectors = Lists(live.first.rows[:, : metrics.CUT]), prepared.vectors.numpy()
    best = max(BASELINES, key=lambda part: live.ranks[part].gains(metrics.CUT).mean())
    floor = live.ranks[best]
    groups = {
        "event_type": {
            name: data.types[live.places] == number for number, name in enumerate(prepared.event_types, UNKNOWN + 1)
        },
        "history": {name: (before >= low) & (before <= high) for name, (low, high) in LENGTHS.items()},
        "item": {"new": new, "known": ~new},
        "time": {"that of the event before": same, "later": ~same},
    }
    chance = metrics.calibration(live.first.probabilities.ravel(), live.first.happened.ravel())
    return {
        **rounded(ours),
        "predictions": ours.predictions,
        "users": len(np.unique(user)),
        "baskets": baskets,
        "seen_items": seen,
        "seen_items_filtered": seen != "keep",
        "repeats": round(repeats(data), 4),
        "coverage": round(lists.coverage(len(prepared.items)), 4),
        "novelty_bits": round(lists.novelty(counts), 2),
        "intra_list_diversity": round(lists.diversity(vectors), 4),
        "diversity": {
            str(strength): diversity_figures(rows, ours.of, live.right, vectors, len(prepared.items))
            for strength, rows in live.varied.items()
        },
        "calibration_error": round(chance.error, 5),
        "floors": {name: rounded(live.ranks[part]) for part, name in BASELINES.items()},
        "frozen": {
            BLEND: rounded(frozen.ranks[BLEND]),
            **{name: rounded(frozen.ranks[part]) for part, name in BASELINES.items()},
        },
        "over_best_floor": {
            "floor": BASELINES[best],
            f"hr_at_{metrics.CUT}": metrics.bootstrap(ours.hits(metrics.CUT) - floor.hits(metrics.CUT), user),
            f"ndcg_at_{metrics.CUT}": metrics.bootstrap(ours.gains(metrics.CUT) - floor.gains(metrics.CUT), user),
        },
        "parts": {part: rounded(live.ranks[part]) for part in PARTS},
        **{
            f"by_{kind}": {
                name: {
                    "predictions": int(which.sum()),
                    **rounded(ours.pick(which)),
                    "floor_hr_at_10": rounded(floor.pick(which))["hr_at_10"],
                }
                for name, which in kinds.items()
                if which.any()
            }
            for kind, kinds in groups.items()
        },
        "reliability": [[round(said, 5), round(came, 5), count] for said, came, count in chance.bins],
    }


def probability_report(
    model: Model, prepared: Prepared, users: Tensor, outputs: Tensor, live: SplitPredictions, known: NDArray[np.bool_]
) -> dict[str, Any]:
    """How good each probability is; `users` (predictions, width + types), `outputs` (rows, width)."""
    data, categories, places = prepared.data, prepared.catalog.categories, live.places
    in_catalogue = data.rows[places] != UNKNOWN  # the others are never recommended
    truth, met = data.rows[places[in_catalogue]], data.rows[known & (data.rows != UNKNOWN)]
    item, category = (said.pick(in_catalogue) for said in live.mass)
    found = {
        "probability": proper_scores.of_items(item, truth, met, len(prepared.items)),
        "next_event": proper_scores.of_types(prepared, model.encoder, users, places, known),
        "interests": proper_scores.of_categories(category, truth, categories, met),
    }
    goal = model.config.goal
    if goal is not None:
        asked = goal_head.contacts(prepared, goal, users[torch.from_numpy(in_catalogue)], places[in_catalogue])
        said = torch.sigmoid(goal_head.logits(model.encoder, asked, outputs)).double().numpy()
        seen = goal_head.Seen.of(prepared, known, goal)
        found["interest"] = proper_scores.of_interest(data, places[in_catalogue], said, seen)
    return {
        name: {of: {key: round(value, 5) for key, value in figures.items()} for of, figures in one.items()}
        for name, one in found.items()
    }


def rounded(ranks: Ranks) -> dict[str, float]:
    """The figures, as precise as they are worth."""
    return {name: round(value, 4) for name, value in metrics.figures(ranks).items()}
