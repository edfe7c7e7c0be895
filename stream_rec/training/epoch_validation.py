"""How good a decoder is by itself in the midst of its training, on a few held-out predictions: the curve of a training.

Nothing is decided by it: the recipe keeps the last epoch.
"""

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812 - its name everywhere

from stream_rec.evaluation.metrics import Ranks, figures
from stream_rec.evaluation.predict import states_at
from stream_rec.evaluation.splits import Split
from stream_rec.features.tokens import UNKNOWN
from stream_rec.models.user_encoder import UserEncoder
from stream_rec.serving.device import upload
from stream_rec.training.config import TrainConfig
from stream_rec.training.prepare import Prepared
from stream_rec.training.trainer import Watch, placed

PREDICTIONS = 500
AT_ONCE = 64
"""Predictions that are scored in one go, against the whole catalogue."""


def watcher(prepared: Prepared, validation: Split, config: TrainConfig) -> Watch:
    """Measures an encoder on the same `PREDICTIONS` of the held-out ones each time."""
    targets = validation.sample(PREDICTIONS, config.seed).targets
    truth = upload(prepared.data.rows[targets], prepared.device)
    count = len(targets)

    @torch.no_grad()
    def watch(encoder: UserEncoder) -> dict[str, float]:
        with placed(encoder, prepared) as there:
            states = states_at(encoder, prepared, targets, config).to(prepared.device)
            items = encoder.items(there.vectors, encoder.residual.weight)
            loss, ranks = torch.zeros((), device=prepared.device), []
            for some, right in zip(torch.split(states, AT_ONCE), torch.split(truth, AT_ONCE), strict=True):
                scores = encoder.score(some, items)
                scores[:, UNKNOWN] = -torch.inf
                loss += F.cross_entropy(scores, right, reduction="sum")
                ranks.append((scores >= scores.gather(1, right[:, None])).sum(dim=1) - 1)
        found = figures(Ranks(np.arange(count), torch.cat(ranks).cpu().numpy(), count))
        return {"loss": loss.item() / count, **{name: found[name] for name in ("hr_at_10", "ndcg_at_10")}}

    return watch
