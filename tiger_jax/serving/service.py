"""A recommender and what stands between it and its clients."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from tiger_jax.recommending.catalogue import Catalogue
from tiger_jax.recommending.explanation import Explanation, explain
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.requests import Answer, Request
from tiger_jax.recommending.versions import CatalogueVersions
from tiger_jax.semantic_ids.code_tree import pack_tree
from tiger_jax.serving import schemas
from tiger_jax.serving.batching import Batcher
from tiger_jax.serving.errors import ApiError
from tiger_jax.serving.metrics import Metrics
from tiger_jax.serving.settings import Limits

_LOG = logging.getLogger(__name__)


class Service:
    """What the routes share."""

    def __init__(
        self,
        recommender: Recommender,
        versions: CatalogueVersions,
        limits: Limits,
        *,
        token: str | None = None,
    ) -> None:
        """Takes a recommender; nothing is compiled yet.

        Args:
            token: See `guard.Guard`.
        """
        self.recommender, self.versions = recommender, versions
        self.limits, self.token = limits, token
        self.metrics = Metrics()
        self.batcher = Batcher(recommender, limits, self.metrics)
        self._explaining = asyncio.Lock()
        self._tree: tuple[Catalogue, bytes] | None = None
        self.status = "compiling"
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failure: Callable[[Exception], None] = lambda error: None

    async def warm_up(self) -> None:
        """Compiles everything, then says that it is ready."""
        try:
            await asyncio.to_thread(self._warm_up)
        except Exception as error:
            _LOG.exception("compiling the searches failed")
            self.on_failure(error)
            return
        if self.status == "compiling":
            self.status = "ok"
            self.metrics.ready.set(1)
            self.on_ready()

    def _warm_up(self) -> None:
        catalogue = self.recommender.catalogue
        self.recommender.warm_up()
        some = int(catalogue.popularity.argmax())
        history = [catalogue.item_ids[some]]
        self.recommender.answer([Request(history, 1, exact=True)])
        self.recommender.answer([Request(history, 1)])
        catalogue.search("a")
        self.note_catalogue()

    def note_catalogue(self) -> None:
        """Tells the metrics which catalogue is being served."""
        catalogue = self.recommender.catalogue
        self.metrics.version.set(catalogue.version)
        self.metrics.items.set(catalogue.num_items)

    async def answer(self, asked: Sequence[schemas.RecommendRequest]) -> list[Answer]:
        """Answers requests together; ApiError if not now, InputError if one is bad."""
        self.check_ready()
        return await self.batcher.answer([one.to_request() for one in asked])

    async def explain(self, asked: schemas.RecommendRequest) -> Explanation:
        """Explains one list at a time; ApiError (429) while it explains another."""
        self.check_ready()
        if self._explaining.locked():
            message = "another list is being explained"
            raise ApiError(429, "busy", message, retry_after=1.0)
        async with self._explaining:
            request = asked.to_request()
            return await asyncio.to_thread(explain, self.recommender, request)

    def packed_tree(self) -> bytes:
        """The catalogue's tree, packed once for each version."""
        catalogue = self.recommender.catalogue
        if self._tree is None or self._tree[0] is not catalogue:
            table = catalogue.table
            packed = pack_tree(
                table.codes,
                table.num_levels,
                table.codebook_sizes,
                item_ids=catalogue.item_ids,
                titles=catalogue.titles,
                categories=catalogue.categories,
                counts=catalogue.popularity,
                vectors=catalogue.embeddings,
            )
            self._tree = (catalogue, packed)
        return self._tree[1]

    def check_ready(self) -> None:
        """Refuses by 503 while the searches are being compiled, and at the end."""
        if self.status != "ok":
            message = f"this server is {self.status}"
            raise ApiError(503, self.status, message, retry_after=5.0)


def number_of(catalogue: Catalogue, item_id: str) -> int:
    """Looks an item up; an unknown one is a 404."""
    if item_id not in catalogue.number_of:
        raise ApiError(404, "unknown_item", f"there is no item {item_id[:80]!r}")
    return catalogue.number_of[item_id]
