"""Routes that change the catalogue while it is being recommended from."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field, StringConstraints

from tiger_jax.recommending.catalogue import ALL_ITEMS
from tiger_jax.recommending.new_items import MAX_ATTRIBUTES, MAX_CHARACTERS
from tiger_jax.recommending.updates import UpdateReport
from tiger_jax.recommending.versions import VersionInfo
from tiger_jax.serving.errors import ApiError
from tiger_jax.serving.schemas import Integer, ItemId, Strict, with_examples
from tiger_jax.serving.service import Service, number_of
from tiger_jax.serving.strict_json import StrictRoute, json_response

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


class KeptVersions(BaseModel):
    """All of them, the oldest first."""

    version: int = Field(description="The one in force.")
    versions: list[VersionInfo]


class Changes:
    """Does one change after the other, in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self._service, self._waiting = service, 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "change-catalogue")

    async def do(self, change: Callable[[], UpdateReport]) -> Response:
        """Makes a change, or none of it, and says what it did; 429 if too many wait."""
        if self._waiting >= MAX_WAITING:
            message = f"{MAX_WAITING} changes are waiting already"
            raise ApiError(429, "busy", message, retry_after=1.0)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            report = await loop.run_in_executor(self._thread, change)
        finally:
            self._waiting -= 1
        self._service.note_catalogue()
        return json_response(report)


def catalogue_routes(service: Service) -> APIRouter:
    """Adding, removing, changing, and going back; only for bearers of the token."""
    changes = Changes(service)
    versions, recommender = service.versions, service.recommender

    def check_allowed() -> None:
        if service.token is None:
            raise ApiError(
                403,
                "no_token_set",
                "the catalogue can be changed only where the server has a token: start "
                "it with TIGER_SERVE_TOKEN or serve.token_file",
            )

    router = APIRouter(
        prefix="/catalogue",
        route_class=StrictRoute,
        tags=["catalogue"],
        dependencies=[Depends(check_allowed)],
    )

    @router.post("/items", response_model=UpdateReport)
    async def add_items(request: AddItems) -> Response:
        """Adds items, which can be recommended at once."""
        new = [item.to_json() for item in request.items]
        return await changes.do(lambda: recommender.update(versions, add=new))

    @router.delete("/items/{item_id:path}", response_model=UpdateReport)
    async def remove_item(item_id: str) -> Response:
        """Removes an item; it is unknown from then on."""
        number_of(recommender.catalogue, item_id)
        return await changes.do(lambda: recommender.update(versions, remove=[item_id]))

    @router.put("/items/{item_id:path}/attributes", response_model=UpdateReport)
    async def set_attributes(item_id: str, request: SetAttributes) -> Response:
        """Sets values that are shown and filtered by; the Semantic ID stays.

        Item * stands for all that have no value of their own.
        """
        if item_id != ALL_ITEMS:
            number_of(recommender.catalogue, item_id)
        wanted = {item_id: request.attributes}
        return await changes.do(lambda: recommender.update(versions, attributes=wanted))

    @router.post("/rollback", response_model=UpdateReport)
    async def roll_back(request: RollBack) -> Response:
        """Makes an earlier version's content the newest version."""
        return await changes.do(
            lambda: recommender.roll_back(versions, request.version)
        )

    @router.get("/versions", response_model=KeptVersions)
    def list_versions() -> Response:
        """Lists the versions that are kept."""
        return json_response(
            {"version": recommender.catalogue.version, "versions": versions.kept()}
        )

    return router
