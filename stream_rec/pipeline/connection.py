"""What every Kafka client here does first: find out whether the broker answers and the topics exist."""

from stream_rec.errors import UserError
from stream_rec.pipeline.topics import Problem, connect


async def require(bootstrap_servers: str, *topics: str) -> dict[str, int]:
    """The number of partitions of each of the topics. Raises `UserError` when no broker answers or one is missing."""
    async with connect(bootstrap_servers) as admin:
        present = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics()}
    for topic in topics:
        if topic not in present:
            raise UserError(str(Problem(topic, "topic", "to exist", None)))
    return {topic: present[topic] for topic in topics}
