import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.decoding.trie import bits


@given(st.lists(st.booleans(), min_size=96, max_size=96))
def test_bits_count_and_find_what_is_set(flags):
    row = bits.pack(jnp.array([flags]))
    assert bits.unpack(row, 96).tolist() == [flags]
    assert bits.popcount(row).sum() == sum(flags)
    places = np.arange(96)
    rows = jnp.tile(row, (96, 1))
    before = bits.count_before(rows, jnp.asarray(places))
    assert before.tolist() == [sum(flags[:place]) for place in places]
    set_places = np.flatnonzero(flags)
    found = bits.position_of_nth(rows, jnp.asarray(places))
    assert found[: len(set_places)].tolist() == set_places.tolist()
