"""The routes: what can be asked of a recommender over HTTP."""

import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Response
from fastapi.responses import HTMLResponse

from tiger_jax import __version__
from tiger_jax.errors import InputError
from tiger_jax.recommending.explanation import Explanation
from tiger_jax.recommending.requests import Answer, ShownItem
from tiger_jax.serving import schemas
from tiger_jax.serving.api_page import describe_api
from tiger_jax.serving.catalogue_routes import catalogue_routes, model_routes
from tiger_jax.serving.errors import ErrorAnswer, answer_errors
from tiger_jax.serving.guard import Guard, Operations
from tiger_jax.serving.service import Service, number_of
from tiger_jax.serving.strict_json import StrictRoute, json_response

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": what}
    for status, what in {
        401: "A token is needed",
        422: "The request makes no sense",
        429: "The queue is full; see Retry-After",
        503: "Not ready, or the deadline has passed; see Retry-After",
    }.items()
}


def create_app(
    service: Service,
    *,
    page: str,
    hosts: Collection[str],
    operations: Operations,
) -> FastAPI:
    """Makes the ASGI app.

    Args:
        page: The HTML at `/`.
        hosts: Names under which it may be addressed; empty: any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="tiger_jax",
        version=__version__,
        summary="Recommendations by Semantic IDs: histories in, items out.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere; /docs is our own
        redoc_url=None,
        responses=_FAILURES,
    )
    answer_errors(app)
    app.include_router(_recommend_routes(service))
    app.include_router(_item_routes(service))
    app.include_router(catalogue_routes(service))
    app.include_router(model_routes(service))
    app.include_router(_operations_routes(service, page))

    @app.get("/docs", include_in_schema=False)
    async def get_docs() -> Response:
        return HTMLResponse(describe_api(app.openapi()))

    app.add_middleware(
        Guard,
        limits=service.limits,
        metrics=service.metrics,
        tokens=service.tokens,
        traces=service.traces,
        hosts=hosts,
        operations=operations,
    )
    return app


def _recommend_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, tags=["recommend"])

    @router.post("/recommend", response_model=Answer)
    async def recommend(request: schemas.RecommendRequest) -> Response:
        """Recommends items to one history."""
        return json_response((await service.answer([request]))[0])

    @router.post("/recommend/batch", response_model=schemas.BatchAnswer)
    async def recommend_batch(batch: schemas.BatchRequest) -> Response:
        """Recommends to several histories, from one version of the catalogue."""
        given, most = len(batch.requests), service.limits.requests
        if given > most:
            raise InputError(f"requests: {given} are too many; at most {most}")
        return json_response({"answers": await service.answer(batch.requests)})

    @router.post("/explain", response_model=Explanation)
    async def explain_list(request: schemas.RecommendRequest) -> Response:
        """Recommends, and shows the beams of each level and what each item added."""
        return json_response(await service.explain(request))

    return router


def _item_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=StrictRoute, tags=["items"])

    @router.get("/items", response_model=schemas.ItemList)
    async def search_items(query: Annotated[schemas.ItemSearch, Query()]) -> Response:
        """Finds items by words of their titles; lists the most popular without."""
        catalogue = service.recommender.catalogue

        def search() -> Response:
            is_asked = query.q.strip()
            numbers = catalogue.search(query.q) if is_asked else catalogue.by_popularity
            shown = numbers[query.offset : query.offset + query.limit]
            items = [ShownItem.of(catalogue, number) for number in shown]
            return json_response(
                {"items": items, "total": len(numbers), "version": catalogue.version}
            )

        return await service.read(search)

    @router.get("/items/{item_id:path}/similar", response_model=schemas.SimilarList)
    async def similar_items(
        item_id: str, query: Annotated[schemas.SimilarSearch, Query()]
    ) -> Response:
        """Lists the items most like one, by Semantic ID or by embedding."""
        catalogue = service.recommender.catalogue
        number_of(catalogue, item_id)
        items = await service.read(
            lambda: service.recommender.similar_items(item_id, query.k, by=query.by)
        )
        return json_response({"items": items, "version": catalogue.version})

    @router.get("/items/{item_id:path}", response_model=ShownItem)
    async def get_item(item_id: str) -> Response:
        """Shows one item."""
        catalogue = service.recommender.catalogue
        number = number_of(catalogue, item_id)
        return json_response(
            await service.read(lambda: ShownItem.of(catalogue, number))
        )

    @router.get("/catalogue", response_model=schemas.CatalogueAnswer)
    async def get_catalogue() -> Response:
        """Says what is being recommended from, and what filters can name."""
        recommender = service.recommender
        catalogue = recommender.catalogue
        fields = await service.read(
            lambda: {f: {"values": catalogue.values_of(f)} for f in catalogue.fields}
        )
        return json_response(
            {
                "version": catalogue.version,
                "num_items": catalogue.num_items,
                "num_new": int(catalogue.is_new.sum()),
                "capacity": catalogue.capacity,
                "codebook_sizes": list(catalogue.table.codebook_sizes),
                "most_k": recommender.shapes.num_beams,
                "most_history": recommender.max_items,
                "most_requests": service.limits.requests,
                "dense_weight": recommender.dense_weights.item,
                "fields": fields,
            }
        )

    @router.get("/catalogue/tree", response_class=Response)
    async def get_tree() -> Response:
        """The tree of Semantic IDs, for the page to draw."""
        packed = await service.read(service.packed_tree)
        headers = {"Content-Encoding": "gzip"}
        return Response(packed, media_type="application/json", headers=headers)

    return router


def _operations_routes(service: Service, page: str) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/", include_in_schema=False)
    async def get_page() -> Response:
        return HTMLResponse(page)

    @router.get("/healthz", response_model=schemas.Health)
    async def is_healthy() -> Response:
        """Whether the process answers."""
        return json_response({"status": service.status})

    @router.get("/readyz", response_model=schemas.Health)
    async def is_ready() -> Response:
        """Whether recommendations are being answered."""
        service.check_ready()
        return json_response({"status": service.status})

    @router.get("/metrics", include_in_schema=False)
    async def get_metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(), media_type=kind)

    return router
