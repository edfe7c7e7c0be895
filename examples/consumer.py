"""Prints recommendations and erasures as they are committed: python consumer.py [HOST:PORT [TOPIC [GROUP]]]

The group keeps the place. A new one begins with the newest answer of every user.
"""

import asyncio
import sys

from stream_rec import Erased, Recommendations, UserError


async def main(server: str = "127.0.0.1:9092", topic: str = "recommendations", group: str = "example") -> None:
    async with Recommendations(bootstrap_servers=server, topic=topic, group=group) as recommendations:
        async for answer in recommendations:
            if isinstance(answer, Erased):
                print(answer.user_id, "was erased", flush=True)
            else:
                print(answer.user_id, answer.seq, *(item.item_id for item in answer.items[:3]), flush=True)


try:
    asyncio.run(main(*sys.argv[1:4]))
except UserError as error:  # no broker answers, or the topic does not exist
    print(f"consumer.py: {error}", file=sys.stderr)
    sys.exit(2)
