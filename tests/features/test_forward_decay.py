from stream_rec.features.forward_decay import Decay, Largest, largest

HOUR = 3_600.0
BEGIN = 1e9


def test_a_weight_doubles_with_every_half_life_until_the_sums_are_rescaled() -> None:
    factors: list[float] = []
    decay = Decay(HOUR, factors.append)
    assert [decay.weight(BEGIN + hours * HOUR) for hours in (0, 1, -2, 500)] == [1, 2, 0.25, 2.0**500]
    assert not factors
    assert decay.landmark == BEGIN

    assert decay.weight(BEGIN + 501 * HOUR) == 1
    assert factors == [2.0**-501]
    assert decay.landmark == BEGIN + 501 * HOUR
    assert decay.weight(BEGIN + 500 * HOUR) == 0.5
    assert decay.weight(0.0) == 2.0**-500


def test_of_equal_sums_the_first_are_the_largest() -> None:
    sums = {4: 1.0, 3: 2.0, 2: 1.0, 1: 2.0}
    assert list(largest(3, sums).items()) == [(4, 1.0), (3, 2.0), (1, 2.0)]
    assert list(largest(4, sums)) == list(largest(9, sums)) == [4, 3, 2, 1]


def test_a_copy_of_few_sums_is_taken() -> None:
    sums = {1: 1.0}
    largest(2, sums)[2] = 2.0
    assert sums == {1: 1.0}


def test_the_bound_below_which_no_sum_enters_decays_with_the_sums() -> None:
    kept = Largest(1, {1: 8.0})
    assert kept.offer(2, 7.0) == (2, 7.0)
    kept.scale(0.25)
    assert kept.offer(2, 3.0) == (1, 2.0)
    assert kept.place(2) == 1
    assert kept.place(1) is None
