"""Predictions of a split of a log, as the engine makes them: the decoder's states, then candidates with their parts."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stream_rec.data import dataset
from stream_rec.evaluation.metrics import MISSED
from stream_rec.evaluation.splits import Split
from stream_rec.features.online_statistics import REACH, OnlineStatistics
from stream_rec.features.tokens import UNKNOWN, Numbers
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.ranking.blend import BARRED, CandidateTable
from stream_rec.ranking.candidate_features import FeatureExtractor
from stream_rec.ranking.retrieval import ExactRetriever, Retrieved
from stream_rec.training import trainer
from stream_rec.training.config import TrainConfig
from stream_rec.training.prepare import Prepared

AT_ONCE = 256
"""Predictions made in one go."""


class Predicted(NamedTuple):
    """Some predictions, in the log's order."""

    places: Numbers
    """Of the targets, (n,)."""
    table: CandidateTable
    """The candidates of each."""


@torch.no_grad()  # inference would leave weights behind, moved to a GPU and back, that take no gradients
def states_at(encoder: UserEncoder, prepared: Prepared, targets: Numbers, config: TrainConfig) -> Tensor:
    """User states before each of the `targets` (n,), (n, width)."""
    encoder.eval()
    data = prepared.data
    place_of = np.full(len(data.rows), -1)
    place_of[targets] = np.arange(len(targets))
    wanted = place_of >= 0
    for begin, end in zip(data.begins[:-1], data.begins[1:], strict=True):
        own = np.flatnonzero(wanted[begin:end])
        if len(own):
            wanted[begin + own[0] : begin + own[-1] + 1] = True
    states = torch.zeros(len(targets), encoder.width)
    with trainer.placed(encoder, prepared) as there:
        for chosen in trainer.plan(prepared, dataset.slices(data, config.capacity, config.stride, wanted), config):
            found, places = trainer.states_of(encoder, there, chosen)
            asked = place_of[places] >= 0
            states[torch.from_numpy(place_of[places][asked])] = found.cpu()[torch.from_numpy(asked)]
    return states


@torch.inference_mode()
def exact_retriever(encoder: UserEncoder, prepared: Prepared) -> ExactRetriever:
    """The catalogue as the decoder scores it."""
    outputs = trainer.outputs_of(encoder, prepared.vectors)
    return ExactRetriever(outputs, torch.arange(len(outputs)) == UNKNOWN)


def predict(
    prepared: Prepared,
    split: Split,
    memory: OnlineStatistics,
    near: Callable[[slice], Retrieved],
    config: TrainConfig,
    progress: Callable[[int], None],
) -> Iterator[Predicted]:
    """Predicts the targets; `near` gives the decoder's candidates of some of them. `memory` has learned what is known.

    Online it learns each event after it was predicted. It is asked as of the latest event that it has learned: without
    learning on, as of the end of what is known, however early a target happened.
    """
    data = prepared.data
    evidence = FeatureExtractor.of(memory, prepared.catalog)
    stream = data.in_log_order(~split.known & split.online)
    ends = np.searchsorted(data.order[stream], data.order[split.targets])
    learned = 0
    for begin in range(0, len(split.targets), AT_ONCE):
        targets = split.targets[begin : begin + AT_ONCE]
        found_near = near(slice(begin, begin + len(targets)))
        found = []
        for at, (place, rows) in enumerate(zip(targets.tolist(), found_near.rows.numpy(), strict=True), begin):
            teach(prepared, memory, stream[learned : ends[at]])
            learned = ends[at]
            window = dataset.served(data, place, config.capacity, config.stride)
            found.append(evidence.extract(data.rows[window].tolist(), rows))
        progress(begin + len(targets))
        yield Predicted(targets, CandidateTable.of(found_near, found))


def teach(prepared: Prepared, memory: OnlineStatistics, places: Numbers) -> None:
    """Teaches `memory` the events at `places` (n,), in this order."""
    data = prepared.data
    begins = data.begins[data.user_of(places)]
    for place, begin in zip(places.tolist(), begins.tolist(), strict=True):
        memory.learn_last(data.rows[max(begin, place - REACH) : place + 1].tolist(), float(data.times[place]))


def probable(table: CandidateTable, values: Tensor, covered: float) -> tuple[Tensor, Tensor]:
    """Probability and row of each answer's candidates by their `values` (candidates,), (answers, most) each.

    What is `BARRED`, or fills an answer up that has fewer, has none. `covered` is the share of truths among candidates.
    """
    spread = table.spread(values, BARRED)
    shares = covered * torch.softmax(spread, dim=1).masked_fill(spread <= BARRED, 0)
    return shares, table.spread(table.rows, UNKNOWN)


def find(table: CandidateTable, of: Numbers, rows: Numbers) -> Tensor:
    """The places in the table of the candidates `rows` (n,) of the answers `of` (n,); -1 where there is none, (n,)."""
    answers, candidates = table.answers.numpy(), table.rows.numpy()
    wide = int(max(candidates.max(initial=0), rows.max(initial=0))) + 1
    keys, wanted = answers * wide + candidates, of * wide + rows
    order = np.argsort(keys)
    at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return torch.from_numpy(np.where(keys[at] == wanted, at, -1))


def ranks(table: CandidateTable, values: Tensor, of: Tensor, truth: Tensor) -> Tensor:
    """0-based rank of each `truth` (right,) by `values` (candidates,), (right,); a tie counts against it.

    A truth is a place in the table; `MISSED` where it is -1, or its value `BARRED`. `of` (right,) are its answers.
    """
    own = values[truth.clamp(min=0)]
    found = (table.spread(values, -torch.inf)[of] >= own[:, None]).sum(dim=1) - 1
    return found.masked_fill((truth < 0) | (own <= BARRED), MISSED)


def without_unknown(predicted: Predicted) -> Predicted:
    """Without the unknown item, which is among the candidates of a small catalogue and is never recommended."""
    answers, rows, columns = predicted.table
    known = rows != UNKNOWN
    return predicted._replace(table=CandidateTable(answers[known], rows[known], columns[known]))


def joined(parts: Sequence[Predicted]) -> Predicted:
    """All predictions in one."""
    offsets = np.cumsum([0, *(len(part.places) for part in parts[:-1])])
    answers = [part.table.answers + int(offset) for part, offset in zip(parts, offsets, strict=True)]
    columns = (torch.cat([getattr(part.table, name) for part in parts]) for name in ("rows", "columns"))
    return Predicted(np.concatenate([part.places for part in parts]), CandidateTable(torch.cat(answers), *columns))
