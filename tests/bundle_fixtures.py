"""One exported bundle for all tests of a folder: making it takes seconds."""

import pytest
from served import make_recommender
from shared_folder import made_once
from trained_workdir import make_trained_workdir

from tiger_jax.recommending.bundle import Bundle
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.stages.context import RunContext
from tiger_jax.stages.export import export


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A bundle's folder; nobody writes to it."""

    def make(workdir):
        make_trained_workdir(workdir, with_quantizer=True)
        export(RunContext(workdir), num_beams=50, batch_sizes=(1, 2))

    return made_once(tmp_path_factory, "exported", make) / "bundle"


@pytest.fixture(scope="session")
def recommender(folder):
    """Recommends from that bundle; nobody exchanges its catalogue."""
    return Recommender.load(folder, version=0)


@pytest.fixture(scope="session")
def coder(folder):
    """Gives new items the codes that this bundle's quantizer gives them."""
    return Bundle.load(folder).parts.coder()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Its searches are made up, so that nothing compiles; see `DrawnPrograms`."""
    return make_recommender(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def tiny_recommender(tiny):
    return tiny[0]
