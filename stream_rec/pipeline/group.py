"""What aiokafka overlooks when it asks a consumer group where to go on."""

from typing import Any

from aiokafka.errors import NoError, for_code
from aiokafka.protocol.commit import OffsetFetchRequest


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
