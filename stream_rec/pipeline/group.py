"""What aiokafka overlooks while a broker is away, and when a consumer group goes on after its start."""

import asyncio
from typing import Any

from aiokafka.errors import NoError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest

TRIES, PAUSE_S = 50, 0.1
"""How often a leader asks for topics that the broker does not tell of, and the pause between, seconds."""


def heed_errors(coordinator: Any) -> None:
    """Makes an aiokafka group coordinator heed the error of a whole answer about committed offsets.

    Since version 2 of OffsetFetch (KIP-88) an error that concerns the group stands beside the partitions, and none of
    those is named. aiokafka 0.14 looks at the partitions alone: while a broker that was just started still loads the
    group, it reads "nothing was ever committed", and its consumer begins anew at the first offset. Raised, the error is
    one that aiokafka tries again on.
    """
    send = coordinator._send_req

    async def heeding(request: Any) -> Any:
        response = await send(request)
        if isinstance(request, OffsetFetchRequest):
            error = for_code(getattr(response, "error_code", NoError.errno))
            if error is not NoError:
                coordinator.coordinator_dead()  # asked for anew before the next attempt
                raise error
        return response

    coordinator._send_req = heeding


def await_topics(coordinator: Any) -> None:
    """Makes the leader of a group assign partitions only when it knows how many each topic has.

    A broker that was just started does not tell of every topic at once. aiokafka assigns what it knows of, which may be
    nothing, and looks again when its metadata is as old as `metadata_max_age_ms`: five minutes later.
    """
    perform = coordinator._perform_assignment

    async def performing(response: Any) -> Any:
        assignments = await perform(response)
        for _ in range(TRIES):
            if all(coordinator._metadata_snapshot.values()):
                break
            await asyncio.sleep(PAUSE_S)
            await coordinator._client.force_metadata_update()
            assignments = await perform(response)
        return assignments

    coordinator._perform_assignment = performing


def unhurried(client: Any) -> None:
    """Makes an aiokafka client pause between attempts: while Kafka is away it would try 4,000 times a second."""
    update = client._metadata_update

    async def attempt(*arguments: Any) -> bool:
        updated = bool(await update(*arguments))
        if not updated:
            await asyncio.sleep(0.2)
        return updated

    client._metadata_update = attempt
