"""Each fault a few times; `make faults` runs the campaigns."""

import pytest

from faults import http_bodies, serving
from faults.campaign import try_once
from faults.every_fault import FAULTS


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_running():
    yield
    http_bodies.close()
    serving.close()


QUICK = [fault for fault in FAULTS if fault.quick]


def check(fault, tries, folder):
    if why := fault.unavailable():
        pytest.skip(why)
    folder = fault.folder(folder)
    folder.mkdir()
    number = 0
    while number < tries:
        outcome = try_once(fault, number, folder)
        assert (outcome.lost, outcome.wrong) == (0, 0), outcome.note
        number += outcome.count


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_a_few_tries_lose_nothing(fault, tmp_path):
    check(fault, fault.quick, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_tenth_of_the_campaign_loses_nothing(fault, tmp_path):
    check(fault, max(fault.quick, fault.asked // 10), tmp_path)
