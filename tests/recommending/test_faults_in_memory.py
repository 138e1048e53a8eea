"""A fault at any line of what the server keeps in memory is gone when it is gone."""

import functools
import sys
import threading

import jax
import numpy as np
import pytest
from joining import HISTORIES, new_items

from tiger_jax.recommending import filters
from tiger_jax.recommending.updates import JoinedRows, change_rows
from tiger_jax.recommending.versions import CatalogueVersions, UnconfirmedError


def lines_of(work):
    """The lines of this package that some work passes, in the order of their first."""
    seen = {}

    def trace(frame, event, _):
        name = frame.f_code.co_filename
        if "/tiger_jax/recommending/" not in name and "/decoding/trie/" not in name:
            return None
        if event == "line":
            seen.setdefault((name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return list(seen)


def failing_at(place, work):
    """Does some work, which runs out of memory when it first comes to a line."""

    def trace(frame, event, _):
        name = frame.f_code.co_filename
        if name != place[0]:
            return None if "/tiger_jax/" not in name else trace
        if event == "line" and frame.f_lineno == place[1]:
            raise MemoryError("injected")
        return trace

    sys.settrace(trace)
    try:
        work()
    except (MemoryError, UnconfirmedError) as error:
        return "injected" in str(error)
    finally:
        sys.settrace(None)
    return False


def anew(catalogue):
    """The same catalogue with nothing in its caches."""
    return change_rows(
        catalogue,
        np.ones(catalogue.num_items, bool),
        JoinedRows.none(catalogue),
        attributes=catalogue.attributes,
        version=catalogue.version,
    )


REQUESTS = {
    "a filter": {"filter": {"category": "Shelf 2"}},
    "a range": {"filter": {"price": {"max": 5}, "brand": ["Acme"]}},
    "a long exclusion": {"exclude": [f"item-{n}" for n in range(3, 49)] * 2},
    "new items": {"epsilon": 0.5},
    "a draw": {"temperature": 1.0},
    "every item": {"exact": True, "filter": {"category": "Shelf 3"}},
}


@pytest.mark.parametrize("every", [42, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS.keys())
def test_after_a_fault_the_same_request_is_answered_right(recommender, options, every):
    """Asked again with all slots taken, so that the request takes another's bit."""

    def fresh():
        made = recommender.fork(anew(recommender.catalogue))
        for n in range(filters.NUM_SLOTS):
            mask = np.arange(50) == n
            made.catalogue.slots.assign({f"other {n}": lambda mask=mask: mask})
        return made

    def ask(live):
        return live.recommend(HISTORIES, k=10, **options)

    expected = ask(fresh())
    live, hits = fresh(), 0
    places = lines_of(functools.partial(ask, live))
    live = fresh()
    for place in places[::every]:
        is_hit = failing_at(place, functools.partial(ask, live))
        assert ask(live) == expected, place
        if is_hit:
            live, hits = fresh(), hits + 1
    assert hits > 20 // every


def test_a_fault_anywhere_in_a_change_leaves_disk_and_memory_alike(
    recommender, folder, tmp_path
):
    def fresh(name):
        versions = CatalogueVersions.open(folder, tmp_path / name)
        return versions, recommender.fork()

    def change(versions, live):
        live.update(versions, add=new_items(2), remove=["item-3"])

    versions, live = fresh("whole")
    places = lines_of(lambda: change(versions, live))
    expected = live.catalogue.table.content_hash
    for n, place in enumerate(places[:: max(1, len(places) // 60)]):
        versions, live = fresh(str(n))
        failing_at(place, lambda v=versions, r=live: change(v, r))
        live.follow(versions)
        assert live.catalogue.version == versions.newest, place
        if versions.newest == 0:
            change(versions, live)
        assert live.catalogue.version == 1
        assert live.catalogue.table.content_hash == expected, place


def test_a_filter_that_took_no_bit_evicts_none(recommender):
    """The evicted filter's bits were once answered in place of the new one's."""
    slots = anew(recommender.catalogue).slots
    masks = {f"{n}": (lambda n=n: np.arange(50) == n) for n in range(40)}

    def failing():
        raise MemoryError

    def items_with(name, make):
        trie, bits = slots.assign({name: make})
        return jax.device_get(trie.attributes), bits[name]

    for name in list(masks)[: filters.NUM_SLOTS]:
        slots.assign({name: masks[name]})
    before, bit = items_with("0", masks["0"])
    for name in ("1", "2"):
        slots.assign({name: masks[name]})
    with pytest.raises(MemoryError):
        slots.assign({"new": failing})
    after, same = items_with("0", masks["0"])
    assert bit == same
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_threads_ask_beside_a_fault(recommender):
    live = recommender.fork(anew(recommender.catalogue))
    wanted = [{"category": f"Shelf {n}"} for n in range(5)]
    expected = [live.recommend(HISTORIES, filter=one) for one in wanted]
    wrong = []

    def ask(seed):
        rng = np.random.default_rng(seed)
        for n in rng.integers(5, size=20):
            if live.recommend(HISTORIES, filter=wanted[n]) != expected[n]:
                wrong.append(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
