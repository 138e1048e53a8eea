import pytest
from compile_once import compile_once


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    with compile_once(tmp_path_factory.mktemp("compiled")):
        yield
