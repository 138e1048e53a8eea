"""What a baseline is: a config that builds a recommender from a work directory."""

import abc
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tiger_jax.evaluation.recommend_fn import RecommendFn

if TYPE_CHECKING:
    from tiger_jax.data.prepared import PreparedData


class Baseline(abc.ABC):
    """A recommender to be measured against; subclass it by a frozen config.

    Attributes:
        name: Its key in records, and the name of its lists.
        inputs: Folders of the work directory that it reads, besides ``data/``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()

    def title_in(self, workdir: Path) -> str:
        """What tables call it, of a work directory that has its inputs."""
        del workdir
        return self.title

    @abc.abstractmethod
    def build(self, data: "PreparedData", workdir: Path) -> RecommendFn:
        """Makes the recommender from training histories alone, or raises InputError."""
