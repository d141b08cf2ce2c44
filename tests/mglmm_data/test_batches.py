"""Batches of like length: everything once, little padding, no batch much dearer than another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mglmm_data.batches import MASK_COST, Extent, filled, plan

extents = st.lists(
    st.builds(Extent, st.lists(st.integers(1, 400), min_size=1, max_size=3).map(tuple), st.integers(0, 30)),
    min_size=1,
    max_size=40,
)


@given(extents, st.integers(1, 40), st.text(max_size=3))
def test_every_sample_is_in_one_batch(found, count, key):
    count = min(count, len(found))
    batches = plan(found, count, key)
    assert len(batches) == count and all(batches)
    assert sorted(number for batch in batches for number in batch) == list(range(len(found)))
    assert batches == plan(found, count, key)


def drawn(count, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(150, 420, count)
    return [Extent((int(length),), int(rng.integers(0, 12))) for length in lengths]


def test_rows_of_like_length_come_together():
    found = drawn(64)
    plain = [found[start : start + 4] for start in range(0, 64, 4)]
    sorted_ones = [[found[number] for number in batch] for batch in plan(found, 16, "a")]
    assert filled(plain) < 0.85 and filled(sorted_ones) > 0.94


def test_no_batch_is_much_dearer_than_another():
    found = drawn(128, seed=1)
    dear = [
        sum(len(found[n].rows) for n in batch) * max(found[n].longest for n in batch)
        + MASK_COST * sum(found[n].masks for n in batch)
        for batch in plan(found, 16, "a")
    ]
    assert max(dear) < 1.25 * float(np.mean(dear))


def test_the_order_of_batches_depends_on_the_key_alone():
    found = drawn(64)
    one, other = plan(found, 16, "a"), plan(found, 16, "b")
    assert one != other and sorted(map(tuple, one)) == sorted(map(tuple, other))
    longest = [max(found[number].longest for number in batch) for batch in one]
    assert longest != sorted(longest)


def test_samples_without_rows_and_too_few_samples():
    assert plan([Extent(()), Extent((5,))], 2, "") in ([[0], [1]], [[1], [0]])
    assert filled([[Extent(())]]) == 1.0
    with pytest.raises(ValueError, match="2 samples cannot fill 3 batches"):
        plan(drawn(2), 3, "")
