from tiger_jax.api import RunResult as RunResult
from tiger_jax.api import run as run
from tiger_jax.recommending.recommender import Recommender as Recommender

__version__: str
