"""Routes that change the catalogue while it is being recommended from."""

import asyncio
import concurrent.futures
import dataclasses
import logging
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, StringConstraints

from tiger_jax.errors import InputError, UserFacingError
from tiger_jax.recommending.catalogue import ALL_ITEMS
from tiger_jax.recommending.new_items import MAX_ATTRIBUTES, MAX_CHARACTERS
from tiger_jax.recommending.recommender import Recommender
from tiger_jax.recommending.updates import UpdateReport
from tiger_jax.recommending.versions import (
    CatalogueVersions,
    UnconfirmedError,
    VersionInfo,
)
from tiger_jax.serving import schemas
from tiger_jax.serving.errors import ApiError
from tiger_jax.serving.schemas import Integer, ItemId, Strict, with_examples
from tiger_jax.serving.service import Service, number_of
from tiger_jax.serving.strict_json import StrictRoute, json_response

AUDIT = logging.getLogger("tiger_jax.audit")
_LOG = logging.getLogger(__name__)
MAX_CHANGED, MAX_WAITING, MAX_DIMS = 1000, 8, 1 << 16

_Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
_Value = bool | Integer | float | _Text
_FieldName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
_Path = Annotated[list[_Text], Field(max_length=32)]


class NewItem(Strict):
    """An item to add."""

    model_config = with_examples(
        {
            "item_id": "a7",
            "title": "Red soap",
            "price": 4.5,
            "categories": [["Beauty", "Bath & Body"]],
            "attributes": {"in_stock": True},
        }
    )

    item_id: ItemId
    title: _Text = ""
    brand: _Text = ""
    price: float | None = None
    categories: Annotated[list[_Path], Field(max_length=32)] = Field(
        [], description="Paths, root first."
    )
    attributes: Annotated[
        dict[_FieldName, _Value], Field(max_length=MAX_ATTRIBUTES)
    ] = Field({}, description="Further fields that filters can name.")
    embedding: Annotated[list[float], Field(max_length=MAX_DIMS)] | None = Field(
        None, description="The item's own vector; without it, its text is embedded."
    )

    def to_json(self) -> dict[str, Any]:
        """As `NewItem.from_json` of the library takes it."""
        fields = self.model_dump(exclude={"attributes"}, exclude_none=True)
        return {**self.attributes, **fields}


class AddItems(Strict):
    """Items that join together, or not at all."""

    items: Annotated[
        list[NewItem], Field(min_length=1, max_length=MAX_CHANGED, fail_fast=True)
    ]


class SetAttributes(Strict):
    """Values of one item, by field; null takes back what was set before."""

    model_config = with_examples({"attributes": {"in_stock": False}})

    attributes: Annotated[
        dict[_FieldName, _Value | None], Field(min_length=1, max_length=MAX_ATTRIBUTES)
    ]


class RollBack(Strict):
    """A version whose content becomes the newest one."""

    version: int = Field(ge=0, le=1 << 53, description="0 is the bundle's own.")


class ServeBundle(Strict):
    """A bundle's folder beside the one served, and what part it gets."""

    model_config = with_examples({"bundle": "bundle-1f3a90c2b7de", "share": 0.1})

    bundle: str = Field(pattern=r"^[\w-][\w.-]*$", max_length=200)
    share: float = Field(ge=0, le=1, description="1 takes the other's place.")


class KeptVersions(BaseModel):
    """All of them, the oldest first."""

    version: int = Field(description="The one in force.")
    versions: list[VersionInfo]


Change = Callable[[Recommender, CatalogueVersions], UpdateReport]


class Changes:
    """Does one change after the other, in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service, self._waiting = service, 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "change-catalogue")

    async def do(self, request: Request, change: Change) -> Response:
        """Makes a change, or none of it, and says what it did; 429 if too many wait."""
        if self._waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} changes are waiting already"
            raise ApiError(429, "busy", message, retry_after=1.0)
        # It goes on, and is noted, even where the client has gone.
        return json_response(await asyncio.shield(self._do(request, change)))

    async def _do(self, request: Request, change: Change) -> UpdateReport:
        self._waiting += 1
        result, done = "failed", "nothing"
        try:
            loop = asyncio.get_running_loop()
            report = await loop.run_in_executor(self._thread, self._change_all, change)
            result, done = "made", f"version {report.version}"
        except UnconfirmedError as error:
            result, done = "unconfirmed", str(error)[:200]
            raise
        except UserFacingError as error:
            result, done = "refused", str(error)[:200]
            raise
        finally:
            self._waiting -= 1
            self._service.metrics.changes.labels(result).inc()
            what = f"{request.method} {request.url.path[:200]}"
            AUDIT.info("%s by %s: %s, %s", what, _client(request), result, done)
        self._service.note_catalogue()
        return report

    def _change_all(self, change: Change) -> UpdateReport:
        """Changes what is served, and then the candidate, if there is one."""
        main, *others = self._service.engines
        unconfirmed, notes = None, []
        try:
            report = change(main.recommender, main.versions)
        except UnconfirmedError as error:  # in force: so for the others, too
            unconfirmed = error
        for other in others:
            try:
                change(other.recommender, other.versions)
            except Exception as error:  # the main one's change is in force
                notes.append(f"not so the catalogue of {other.folder.name}: {error}")
                _LOG.error(notes[-1], exc_info=not isinstance(error, UserFacingError))
        if unconfirmed is not None:
            raise unconfirmed
        return dataclasses.replace(report, notes=(*report.notes, *notes))


def catalogue_routes(service: Service) -> APIRouter:
    """Adding, removing, changing, and going back; only for administrators."""
    changes = Changes(service)

    router = APIRouter(
        prefix="/catalogue",
        route_class=StrictRoute,
        tags=["catalogue"],
        dependencies=[Depends(service.tokens.check_admin)],
    )

    @router.post("/items", response_model=UpdateReport)
    async def add_items(request: Request, wanted: AddItems) -> Response:
        """Adds items, which can be recommended at once."""
        new = [item.to_json() for item in wanted.items]
        return await changes.do(request, lambda r, v: r.update(v, add=new))

    @router.delete("/items/{item_id:path}", response_model=UpdateReport)
    async def remove_item(request: Request, item_id: str) -> Response:
        """Removes an item; it is unknown from then on."""

        def remove(recommender: Recommender, versions: CatalogueVersions) -> Any:
            _check_item(recommender, versions, item_id)
            return recommender.update(versions, remove=[item_id])

        return await changes.do(request, remove)

    @router.put("/items/{item_id:path}/attributes", response_model=UpdateReport)
    async def set_attributes(
        request: Request, item_id: str, wanted: SetAttributes
    ) -> Response:
        """Sets values that are shown and filtered by; the Semantic ID stays.

        Item * stands for all that have no value of their own.
        """

        def change(recommender: Recommender, versions: CatalogueVersions) -> Any:
            if item_id != ALL_ITEMS:
                _check_item(recommender, versions, item_id)
            attributes = {item_id: wanted.attributes}
            return recommender.update(versions, attributes=attributes)

        return await changes.do(request, change)

    @router.post("/rollback", response_model=UpdateReport)
    async def roll_back(request: Request, wanted: RollBack) -> Response:
        """Makes an earlier version's content the newest version."""

        def go_back(recommender: Recommender, versions: CatalogueVersions) -> Any:
            if recommender is not service.recommender:
                raise InputError("its versions have other numbers")
            return recommender.roll_back(versions, wanted.version)

        return await changes.do(request, go_back)

    @router.post("/reload", response_model=schemas.CatalogueVersion)
    async def reload() -> Response:
        """Takes over at once what other processes made of the catalogue."""
        await service.reload()
        return json_response({"version": service.recommender.catalogue.version})

    @router.get("/versions", response_model=KeptVersions)
    async def list_versions() -> Response:
        """Lists the versions that are kept."""
        version = service.recommender.catalogue.version
        kept = await service.read(service.versions.kept)
        return json_response({"version": version, "versions": kept})

    return router


def model_routes(service: Service) -> APIRouter:
    """Which bundles answer, and exchanging them; the latter for administrators."""
    router = APIRouter(prefix="/models", route_class=StrictRoute, tags=["models"])

    @router.get("", response_model=schemas.ServedModels)
    async def list_models() -> Response:
        """Lists the bundles that answer, the main one first."""
        shares = (1 - service.share, service.share)
        models = [
            schemas.ServedModel(
                bundle=engine.folder.name,
                model=engine.model,
                version=engine.recommender.catalogue.version,
                share=share,
            )
            for engine, share in zip(service.engines, shares, strict=False)
        ]
        return json_response(schemas.ServedModels(models=models))

    @router.post(
        "",
        response_model=schemas.ServedModels,
        dependencies=[Depends(service.tokens.check_admin)],
    )
    async def serve_bundle(request: Request, wanted: ServeBundle) -> Response:
        """Gives a bundle beside the one served a share of the requests, or all."""
        await asyncio.shield(service.serve_bundle(wanted.bundle, wanted.share))
        what, who = (wanted.share, wanted.bundle), _client(request)
        AUDIT.info("%s of the requests go to %s, by %s", *what, who)
        return await list_models()

    return router


def _client(request: Request) -> str:
    return request.client.host if request.client else "a socket"


def _check_item(
    recommender: Recommender, versions: CatalogueVersions, item_id: str
) -> None:
    """Refuses by 404 an item that isn't in the newest version, whoever wrote it."""
    recommender.follow(versions)
    number_of(recommender.catalogue, item_id)
