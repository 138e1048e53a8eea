"""One small shop, locally and through the pipelines; tests that change it copy it."""

import pytest
from shared_folder import made_once


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The local stages' results, and the pipelines' in a work directory's `shards/`."""
    # Not above: jaxtyping checks what is imported after this file.
    from shop_pipelines import LocalShop, ShardedShop, small_shop

    from tiger_jax.data.interactions import InteractionsConfig

    def make(folder):
        core = InteractionsConfig(k_core=5, tie_order="item")
        local = LocalShop(small_shop(), folder, interactions=core, unseen_share=0.1)
        return local, ShardedShop(local, folder / "run" / "shards", shards=4, workers=2)

    return make(made_once(tmp_path_factory, "pipelines", make))  # finds all finished
