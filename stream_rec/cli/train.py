"""`stream-rec train` as a person sees it: what is read, and what is made of it.

torch takes seconds to import: that happens once what the person typed has been found to be right.
"""

import logging
import math
import os
from datetime import UTC, datetime

from stream_rec.config import Settings
from stream_rec.data import event_log
from stream_rec.data.source import Period, ReadTopic, Source, from_files
from stream_rec.errors import UserError
from stream_rec.runtime.progress import bars
from stream_rec.runtime.terminal import Terminal
from stream_rec.training import options
from stream_rec.training.options import TrainOptions


def run(settings: Settings, chosen: TrainOptions, read_topic: ReadTopic) -> int:
    """Trains; returns the exit code, 130 after Ctrl-C. Raises `UserError` for what a person can put right."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for name in ("transformers", "sentence_transformers", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options.check(chosen)
    console = Terminal(stderr=True)
    source = _read(chosen, read_topic, console)
    more = again(chosen, source)
    if chosen.first < 1:
        source = source._replace(log=event_log.split(source.log, chosen.first)[0])
    with console.status("loading torch"):
        import torch

        from stream_rec.models import model_store
        from stream_rec.training import run
        from stream_rec.training import run as single
    torch.set_num_threads(chosen.threads or os.cpu_count() or 1)
    before = None
    if chosen.continues is not None:
        before = model_store.load(chosen.continues)
        options.check_model(settings, chosen, before)
    given = single.Given(settings, source, before, console)
    try:
        if chosen.trials is not None:
            from stream_rec.training import search

            search.run(given, chosen, chosen.trials)
        elif chosen.seeds is not None:
            run.train_seeds(given, chosen, chosen.seeds)
        else:
            single.show(single.train_one(given, chosen, single.config_of(given, chosen)), chosen)
    except KeyboardInterrupt:
        console.print(f"interrupted: the same command{more} goes on from the last whole epoch")
        return 130
    return 0


def _read(chosen: TrainOptions, read_topic: ReadTopic, console: Terminal) -> Source:
    period = Period.parse(chosen.since, chosen.until)
    if chosen.events is not None:
        source = from_files(chosen.events, chosen.items, chosen.columns, period)
    else:
        with bars(console, stay=False) as progress:
            source = read_topic(str(chosen.from_topic), period, chosen.items, chosen.columns, progress)
    if chosen.continues is not None and not source.log.has_time:
        raise UserError(f"{source.about}: it has no times, and --continue goes by them")
    for note in source.notes:
        console.say(note)
    return source


def again(chosen: TrainOptions, source: Source) -> str:
    """What a command must add to read the same events again, where others arrive meanwhile and ages grow."""
    if chosen.events is not None and chosen.since is None and chosen.until is None:
        return ""
    times = source.log.frame["time"].to_numpy()
    since, until = (datetime.fromtimestamp(math.floor(at), UTC) for at in (times.min(), times.max() + 1))
    return f" with --since {since:%Y-%m-%dT%H:%M:%S} --until {until:%Y-%m-%dT%H:%M:%S}"
