from prometheus_client import CollectorRegistry, Gauge

from stream_rec.kafka.lag import HeldUp, Readable


def test_a_partition_is_held_up_for_as_long_as_the_same_transaction_is_open() -> None:
    registry = CollectorRegistry()
    held_up = HeldUp(Gauge("held_up", "", ["partition"], registry=registry))

    def seconds(now: float, partitions: dict[int, Readable]) -> dict[int, float | None]:
        held_up.show(partitions, now)
        return {number: registry.get_sample_value("held_up", {"partition": str(number)}) for number in (0, 1)}

    assert seconds(10, {0: Readable(5, 9), 1: Readable(7, 7)}) == {0: 0, 1: 0}
    assert seconds(14, {0: Readable(5, 12), 1: Readable(7, 8)}) == {0: 4, 1: 0}
    assert seconds(16, {0: Readable(6, 12), 1: Readable(7, 8)}) == {0: 0, 1: 2}  # the next one is open
    assert seconds(19, {0: Readable(6, 12), 1: Readable(8, 8)}) == {0: 3, 1: 0}
    assert seconds(20, {1: Readable(8, 9)}) == {0: None, 1: 0}  # 0 has moved to another process
    assert seconds(30, {0: Readable(6, 12), 1: Readable(8, 9)}) == {0: 0, 1: 10}
