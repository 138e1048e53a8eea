"""JSON in and out, as it is defined."""

from collections.abc import Callable
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from tiger_jax.serving.errors import ApiError


class StrictRoute(APIRoute):
    """Reads bodies as JSON is defined: no NaN, no depth without end, whole Unicode."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        try:
            return pydantic_core.from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(
                400, "invalid_json", f"the body is no JSON: {str(error)[:120]}"
            ) from None


def json_response(content: Any) -> Response:
    """A whole answer, of mappings, lists and dataclasses, its values as they are."""
    return Response(pydantic_core.to_json(content), media_type="application/json")
