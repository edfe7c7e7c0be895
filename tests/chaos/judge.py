"""From the records of the topics to the verdict on a run."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from aiokafka import ConsumerRecord

from stream_rec.messages import Recommendation, read_recommendation
from tests.chaos.reading import Reading, Written
from tests.chaos.verdict import Entry, Faults, compare, numbered, same_answer

Told = Mapping[tuple[int, int], Mapping[str, Recommendation]]
"""The calm answer of each model to the event at (partition, offset)."""


class Found(NamedTuple):
    """What the topics of a run hold, as a read_committed consumer sees it."""

    windows: Sequence[ConsumerRecord]
    answers: Sequence[ConsumerRecord]
    dead: Sequence[ConsumerRecord]


def judge(
    reading: Reading, events: Sequence[ConsumerRecord], disturbed: Found, calm: Sequence[Found]
) -> dict[str, Faults]:
    """The faults of a disturbed run, by kind of record.

    Windows and dead letters are compared with the reading of the log. So are those of the calm runs, one a model, which
    must be without a fault: else `AssertionError`. Which answers there must be follows from the windows; what stands in
    them, from the calm answers of their model.
    """
    told = _told(calm)
    for number, found in enumerate(calm):
        faults = _faults(reading, events, found, told)
        assert not any(map(any, faults.values())), f"the calm run {number} has faults: {faults}"
    return _faults(reading, events, disturbed, told)


def _faults(reading: Reading, events: Sequence[ConsumerRecord], found: Found, told: Told) -> dict[str, Faults]:
    return {
        "windows": _windows(reading, found.windows),
        "answers": _answers(reading, found.answers, told),
        "dead letters": _dead(reading, events, found.dead),
    }


def _windows(reading: Reading, found: Sequence[ConsumerRecord]) -> Faults:
    faults = Faults()
    for partition, records in _by_partition(reading, found).items():
        wanted = [(one.key, one.window and one.offset, one.window) for one in _written(reading, partition)]
        got = []
        for record in records:
            window = record.value and msgspec.json.decode(record.value)
            got.append((record.key, window and window["offset"], window))
        faults += compare(numbered(wanted), numbered(got), lambda one, other: one == other)
    return faults


def _answers(reading: Reading, found: Sequence[ConsumerRecord], told: Told) -> Faults:
    def same(each: Mapping[str, Recommendation] | None, one: Recommendation | None) -> bool:
        if each is None or one is None:
            return each is one
        return one.model in each and same_answer(each[one.model], one)

    faults = Faults()
    for partition, records in _by_partition(reading, found).items():
        wanted = [
            (one.key, one.window and one.offset, one.window and told.get((partition, one.offset), {}))
            for one in _written(reading, partition)
        ]
        answers = [(record.key, record.value and read_recommendation(record.value)) for record in records]
        got = [(key, answer and answer.offset, answer) for key, answer in answers]
        faults += compare(numbered(wanted), numbered(got), same)
    return faults


def _dead(reading: Reading, events: Sequence[ConsumerRecord], found: Sequence[ConsumerRecord]) -> Faults:
    """Their own order says nothing: they are spread over partitions by key."""
    wanted = []
    for event in events:
        place = event.partition, event.offset
        if place in reading.refused:
            wanted.append(Entry((event.topic, *place), (reading.refused[place], event.key, event.value)))
    got = []
    for record in found:
        headers = {name: value.decode() for name, value in record.headers}
        place = headers["topic"], int(headers["partition"]), int(headers["offset"])
        got.append(Entry(place, (headers["reason"], record.key, record.value)))
    return compare(wanted, got, lambda one, other: one == other, ordered=False)


def _told(calm: Sequence[Found]) -> Told:
    told: defaultdict[tuple[int, int], dict[str, Recommendation]] = defaultdict(dict)
    for found in calm:
        for record in found.answers:
            if record.value is not None:
                answer = read_recommendation(record.value)
                told[record.partition, answer.offset][answer.model] = answer
    return dict(told)


def _written(reading: Reading, partition: int) -> Sequence[Written]:
    return reading.windows.get(partition, ())


def _by_partition(reading: Reading, records: Sequence[ConsumerRecord]) -> dict[int, list[ConsumerRecord]]:
    """Of every partition that has something or should."""
    found: dict[int, list[ConsumerRecord]] = {partition: [] for partition in reading.windows}
    for record in records:
        found.setdefault(record.partition, []).append(record)
    return found
