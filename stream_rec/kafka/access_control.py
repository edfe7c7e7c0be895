"""The rights that each part needs on Kafka, and whether Kafka grants them.

The lists are the least rights of each part. They are checked at its start, so that one line names what is missing,
printed by `stream-rec topics acls`, and shown in docs/security.md. A broker without an authorizer grants everything.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby
from typing import Any, Literal, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.types import (
    AbstractType,
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)

from stream_rec.config import Settings
from stream_rec.errors import UserError
from stream_rec.kafka.connection import Access, connect


class AclBinding(NamedTuple):
    operation: str
    kind: Literal["topic", "group", "transactional-id"]
    name: str
    prefixed: bool = False
    """Whether `name` stands for all names that begin with it."""

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}{'*' * self.prefixed}"


AclBindings = tuple[AclBinding, ...]


def on(operation: str, *topics: str) -> AclBindings:
    return tuple(AclBinding(operation, "topic", topic) for topic in topics)


def agents(settings: Settings) -> AclBindings:
    mine = settings.events_topic, settings.windows_topic, settings.dead_letter_topic
    return (
        *(*on("Read", *mine), *on("DescribeConfigs", *mine), *on("Write", *mine[1:])),
        AclBinding("Read", "group", settings.agents_group),
    )


def worker(settings: Settings) -> AclBindings:
    mine = settings.recommendations_topic, settings.dead_letter_topic
    return (
        *on("Read", settings.windows_topic, settings.items_topic),
        *(*on("Write", *mine), *on("DescribeConfigs", *mine)),
        AclBinding("Read", "group", settings.worker_group),
        AclBinding("Write", "transactional-id", transactions(settings), prefixed=True),
    )


def transactions(settings: Settings) -> str:
    """How the transactional ids of the workers begin; a partition's number follows, or what no other worker has."""
    return f"{settings.worker_group}-{settings.windows_topic}-"


def service(settings: Settings, group: str = "home-page") -> AclBindings:
    """Of whoever imports the client and keeps its place in `group`."""
    return (*on("Read", settings.recommendations_topic), AclBinding("Read", "group", group))


def report(settings: Settings) -> AclBindings:
    """Of who follows what becomes of events: `replay --report`, the console."""
    return on("Read", settings.events_topic, settings.recommendations_topic, settings.dead_letter_topic)


def console(settings: Settings) -> AclBindings:
    return (*report(settings), *on("Read", settings.windows_topic, settings.items_topic))


def explain(settings: Settings) -> AclBindings:
    return on("Read", settings.windows_topic, settings.items_topic, settings.recommendations_topic)


def personal(settings: Settings) -> tuple[str, ...]:
    """The topics that hold what users do."""
    return settings.events_topic, settings.windows_topic, settings.recommendations_topic, settings.dead_letter_topic


def eraser(settings: Settings) -> AclBindings:
    """Of `forget`, which also without `--wait` looks for the partitions that hold something of the user."""
    return (
        *on("Read", settings.events_topic, settings.windows_topic, settings.recommendations_topic),
        *on("Write", settings.events_topic),
        *on("Describe", settings.dead_letter_topic),
        *on("DescribeConfigs", *personal(settings)),
        *(AclBinding("Describe", "group", group) for group in (settings.agents_group, settings.worker_group)),
    )


def checking(*topics: str) -> AclBindings:
    return (*on("Describe", *topics), *on("DescribeConfigs", *topics))


PARTS: Mapping[str, Callable[[Settings], AclBindings]] = {
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


def acl_commands(settings: Settings) -> Iterator[str]:
    """The arguments of Kafka's own `kafka-acls.sh` that grant everything, a line for each part and resource."""
    for part, needs in PARTS.items():
        for (kind, name, prefixed), same in groupby(sorted(needs(settings), key=_resource), key=_resource):
            operations = " ".join(f"--operation {right.operation}" for right in same)
            pattern = " --resource-pattern-type prefixed" if prefixed else ""
            yield f"--allow-principal User:{part} {operations} --{kind} {name}{pattern}"


def _resource(right: AclBinding) -> tuple[str, str, bool]:
    return right.kind, right.name, right.prefixed


OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
"""Kafka's numbers of them (`org.apache.kafka.common.acl.AclOperation`)."""
SEEING = {"Read", "Write", "Describe"}
"""Each of these lets a topic be seen."""
COORDINATORS = {"group": 0, "transactional-id": 1}
UNKNOWN = -1 << 31
"""What a broker says that does not tell rights."""
NO_ID = bytes(16)
"""What a broker says that gives topics no ids."""


class TopicInfo(NamedTuple):
    """A topic as the brokers describe it."""

    partitions: int
    id: str
    """Which Kafka gives a topic when it is created, in the form that Kafka's own tools print.

    Empty where the brokers give none (before Kafka 2.8).
    """


async def check_access(access: Access, *rights: AclBinding) -> dict[str, int]:
    """The number of partitions of each topic that `rights` name.

    Raises `UserError` when no broker answers, a topic does not exist, or a right is not granted.
    """
    return {name: topic.partitions for name, topic in (await describe_topics(access, *rights)).items()}


async def describe_topics(access: Access, *rights: AclBinding, timeout_s: float = 5) -> dict[str, TopicInfo]:
    """Each topic that `rights` name. Raises `UserError` like `require`; `timeout_s` seconds bound each request."""
    async with connect(access, timeout_s) as admin:
        topics = await _granted(admin, *rights)
    missing = {right.name: None for right in rights if right.kind == "topic" and right.name not in topics}
    if missing:
        raise UserError("; ".join(map(no_topic, missing)))
    return topics


async def cluster_of(access: Access, timeout_s: float = 5) -> str:
    """The id of the cluster. Raises `UserError` when no broker answers within `timeout_s` seconds."""
    async with connect(access, timeout_s) as admin:
        return str((await admin._send_request(Metadata([]))).cluster_id)


def no_topic(topic: str) -> str:
    """What to do about a topic that is not there."""
    return f"topic {topic} does not exist: run 'stream-rec topics create'"


async def examine(admin: AIOKafkaAdminClient, *rights: AclBinding) -> dict[str, int]:
    """The number of partitions of each topic that `rights` name and that exists; it creates none.

    Raises `UserError` when a right is not granted.
    """
    return {name: topic.partitions for name, topic in (await _granted(admin, *rights)).items()}


async def _granted(admin: AIOKafkaAdminClient, *rights: AclBinding) -> dict[str, TopicInfo]:
    topics = await _topics(admin, [right.name for right in rights if right.kind == "topic"])
    denied = [
        right
        for right in rights
        if not (topics[right.name].grants(right) if right.kind == "topic" else await _coordinated(admin, right))
    ]
    if denied:
        raise UserError(denial(admin, *denied))
    return {name: TopicInfo(topic.partitions, topic.id) for name, topic in topics.items() if topic.partitions}


def denial(admin: AIOKafkaAdminClient, *rights: AclBinding) -> str:
    """What to do about rights that Kafka does not grant."""
    user = admin._client._sasl_plain_username
    who = "us" if user is None else f"user {user!r}"
    return f"Kafka does not grant {who}: {', '.join(map(str, rights))}; see 'stream-rec topics acls'"


class _Topic(NamedTuple):
    error: int
    partitions: int
    """0: it does not exist, or must not be seen."""
    id: str
    operations: int
    """A bit for each of Kafka's operations."""

    def grants(self, right: AclBinding) -> bool:
        """A topic that may be seen and is not there grants anything; of one that may not be seen no more is known."""
        if self.error == TopicAuthorizationFailedError.errno:
            return right.operation not in SEEING
        granted = self.operations >> OPERATIONS[right.operation] & 1
        return bool(granted) or not self.partitions or self.operations == UNKNOWN


async def _topics(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, _Topic]:
    answer = await admin._send_request(Metadata(list(dict.fromkeys(names))))
    return {
        topic["topic"]: _Topic(
            topic["error_code"], len(topic["partitions"]), topic_id(topic), topic["authorized_operations"]
        )
        for topic in answer.to_object()["topics"]
    }


def topic_id(topic: dict[str, Any]) -> str:
    """The id of a topic in an answer to `Metadata`."""
    number = topic.get("topic_id", NO_ID)
    return "" if number == NO_ID else urlsafe_b64encode(number).decode().rstrip("=")


async def _coordinated(admin: AIOKafkaAdminClient, right: AclBinding) -> bool:
    """Whether Kafka tells who coordinates a group or transaction: who may use it may know that, and others may not."""
    answer = await admin._send_request(FindCoordinatorRequest(right.name, COORDINATORS[right.kind]))
    denied = GroupAuthorizationFailedError.errno, TransactionalIdAuthorizationFailed.errno
    return answer.error_code not in denied


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String()), ("port", Int32), ("rack", String()))),
        ("cluster_id", String()),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String()),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("authorized_operations", Int32),
    )


class _MetadataResponseWithIds(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String())),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _MetadataRequestWithIds(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponseWithIds
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("topic", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class Metadata(Request[_MetadataRequest | _MetadataRequestWithIds]):  # type: ignore[misc]
    """Topics by their names, with their ids (KIP-516) and what the asking user may do to each (KIP-430).

    aiokafka's own request stops at version 5.
    """

    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(
        self, request_struct_class: type[_MetadataRequest | _MetadataRequestWithIds]
    ) -> _MetadataRequest | _MetadataRequestWithIds:
        if request_struct_class is _MetadataRequest:
            return request_struct_class(list(self._topics), False, False, True)
        return request_struct_class([(NO_ID, name, {}) for name in self._topics], False, False, True, {})
