"""One small shop, locally and through the pipelines; tests that change it copy it."""

import os
from pathlib import Path

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


@pytest.fixture(scope="session")
def local_demo(tmp_path_factory):
    from shop_pipelines import LocalShop

    from tiger_jax.data.interactions import InteractionsConfig
    from tiger_jax.data.synthetic import SyntheticShopConfig, generate_shop
    from tiger_jax.quantizers.residual_kmeans import ResidualKMeans

    return LocalShop(
        generate_shop(SyntheticShopConfig()),
        tmp_path_factory.mktemp("demo"),
        interactions=InteractionsConfig(),
        quantizer=ResidualKMeans((64, 64, 64), max_iterations=5),
    )


@pytest.fixture(scope="session")
def local_beauty(tmp_path_factory):
    from shop_pipelines import LocalShop

    from tiger_jax.data.interactions import InteractionsConfig
    from tiger_jax.data.readers.files import FilesConfig
    from tiger_jax.quantizers.residual_kmeans import ResidualKMeans

    if not os.environ.get("TIGER_DATA"):
        pytest.skip("needs TIGER_DATA")
    shop = FilesConfig().read(Path(os.environ["TIGER_DATA"]) / "amazon2014_beauty")
    return LocalShop(
        shop,
        tmp_path_factory.mktemp("beauty"),
        # Already a 5-core: a 6-core has rounds to go.
        interactions=InteractionsConfig(k_core=6),
        quantizer=ResidualKMeans((256, 256, 256), max_iterations=3),
    )
