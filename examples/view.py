"""Holds every user's newest recommendation, and answers each line of stdin: python view.py [HOST:PORT [TOPIC]]"""

import asyncio
import sys

from stream_rec import LatestRecommendations, UserError


async def main(server: str = "127.0.0.1:9092", topic: str = "recommendations") -> None:
    async with LatestRecommendations(bootstrap_servers=server, topic=topic) as latest:
        await latest.caught_up()
        print(len(latest), "users", flush=True)
        while user := (await asyncio.to_thread(sys.stdin.readline)).strip():
            answer = latest.get(user)
            print(user, *(item.item_id for item in answer.items[:3]) if answer else ["-"], flush=True)


try:
    asyncio.run(main(*sys.argv[1:3]))
except UserError as error:  # no broker answers, or the topic does not exist
    print(f"view.py: {error}", file=sys.stderr)
    sys.exit(2)
