"""What is right for a prediction, and what the user had met before it."""

import numpy as np
from numpy.typing import NDArray

from stream_rec.data.dataset import Dataset
from stream_rec.features.tokens import Numbers
from stream_rec.ranking.blend import Table


def right(data: Dataset, places: Numbers, *, baskets: bool) -> tuple[Numbers, Numbers]:
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


def met(data: Dataset, places: Numbers, table: Table) -> NDArray[np.bool_]:
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
