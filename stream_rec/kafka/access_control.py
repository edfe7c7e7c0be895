"""What each part does on Kafka, as the rights that it needs and no others.

The same lists are asked for at the start of a part (`granted`), printed by `stream-rec topics acls`, and stand in
docs/security.md.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import Literal, NamedTuple

from stream_rec.config import Settings


class Right(NamedTuple):
    operation: str
    kind: Literal["topic", "group", "transactional-id"]
    name: str
    prefixed: bool = False
    """Whether `name` stands for all names that begin with it."""

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}{'*' * self.prefixed}"


Rights = tuple[Right, ...]


def on(operation: str, *topics: str) -> Rights:
    return tuple(Right(operation, "topic", topic) for topic in topics)


def agents(settings: Settings) -> Rights:
    mine = settings.events_topic, settings.windows_topic, settings.dead_letter_topic
    return (
        *(*on("Read", *mine), *on("DescribeConfigs", *mine), *on("Write", *mine[1:])),
        Right("Read", "group", settings.agents_group),
    )


def worker(settings: Settings) -> Rights:
    mine = settings.recommendations_topic, settings.dead_letter_topic
    return (
        *on("Read", settings.windows_topic, settings.items_topic),
        *(*on("Write", *mine), *on("DescribeConfigs", *mine)),
        Right("Read", "group", settings.worker_group),
        Right("Write", "transactional-id", transactions(settings), prefixed=True),
    )


def transactions(settings: Settings) -> str:
    """How the transactional ids of the workers begin; a partition's number follows, or what no other worker has."""
    return f"{settings.worker_group}-{settings.windows_topic}-"


def service(settings: Settings, group: str = "home-page") -> Rights:
    """Of whoever imports the client and keeps its place in `group`."""
    return (*on("Read", settings.recommendations_topic), Right("Read", "group", group))


def report(settings: Settings) -> Rights:
    """Of who follows what becomes of events: `replay --report`, the console."""
    return on("Read", settings.events_topic, settings.recommendations_topic, settings.dead_letter_topic)


def console(settings: Settings) -> Rights:
    return (*report(settings), *on("Read", settings.windows_topic, settings.items_topic))


def explain(settings: Settings) -> Rights:
    return on("Read", settings.windows_topic, settings.items_topic, settings.recommendations_topic)


def personal(settings: Settings) -> tuple[str, ...]:
    """The topics that hold what users do."""
    return settings.events_topic, settings.windows_topic, settings.recommendations_topic, settings.dead_letter_topic


def eraser(settings: Settings) -> Rights:
    """Of `forget`, which also without `--wait` looks for the partitions that hold something of the user."""
    return (
        *on("Read", settings.events_topic, settings.windows_topic, settings.recommendations_topic),
        *on("Write", settings.events_topic),
        *on("Describe", settings.dead_letter_topic),
        *on("DescribeConfigs", *personal(settings)),
        *(Right("Describe", "group", group) for group in (settings.agents_group, settings.worker_group)),
    )


def checking(*topics: str) -> Rights:
    return (*on("Describe", *topics), *on("DescribeConfigs", *topics))


PARTS: Mapping[str, Callable[[Settings], Rights]] = {
    "agents": agents,
    "worker": worker,
    "service": service,
    "shop": lambda settings: on("Write", settings.events_topic),
    "catalogue": lambda settings: on("Write", settings.items_topic),
    "report": report,
    "console": console,
    "recommend": lambda settings: on("Read", settings.recommendations_topic, settings.items_topic),
    "explain": explain,
    "eraser": eraser,
    "train": lambda settings: on("Read", settings.events_topic, settings.items_topic),
    "operator": lambda settings: (*on("Create", *settings.topics), *checking(*settings.topics)),
}
"""The parts by the names of their users; a user may of course be several of them."""


def commands(settings: Settings) -> Iterator[str]:
    """The arguments of Kafka's own `kafka-acls.sh` that grant everything, a line for each part and resource."""
    for part, needs in PARTS.items():
        for (kind, name, prefixed), same in groupby(sorted(needs(settings), key=_resource), key=_resource):
            operations = " ".join(f"--operation {right.operation}" for right in same)
            pattern = " --resource-pattern-type prefixed" if prefixed else ""
            yield f"--allow-principal User:{part} {operations} --{kind} {name}{pattern}"


def _resource(right: Right) -> tuple[str, str, bool]:
    return right.kind, right.name, right.prefixed
