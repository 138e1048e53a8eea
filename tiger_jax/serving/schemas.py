"""What requests and answers look like; whatever isn't named here is refused."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from tiger_jax.recommending import requests
from tiger_jax.recommending.filters import MAX_FIELDS, MAX_VALUES
from tiger_jax.recommending.requests import Answer, ShownItem, SimilarItem

MAX_K, MAX_LEVELS, MAX_CODEWORD = 1000, 32, 1 << 20
_EXACT = 1 << 53  # integers that JSON readers agree on


def _as_digits(value: Any) -> Any:
    """A whole number is its digits, as in files."""
    return str(value) if type(value) is int and abs(value) <= _EXACT else value


ItemId = Annotated[
    str, BeforeValidator(_as_digits), StringConstraints(min_length=1, max_length=256)
]
ItemIds = Annotated[list[ItemId], Field(max_length=requests.MAX_IDS, fail_fast=True)]
_Text = Annotated[str, StringConstraints(max_length=256)]
Integer = Annotated[int, Field(ge=-_EXACT, le=_EXACT)]
_Value = bool | Integer | float | _Text


class Strict(BaseModel):
    """A part of a request: right types, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def with_examples(*examples: dict[str, Any]) -> ConfigDict:
    """Shows examples of a request in the API's description."""
    return ConfigDict(json_schema_extra={"examples": list(examples)})


class Range(Strict):
    """Numbers from `min` to `max`, both included."""

    min: float | None = None
    max: float | None = None


def _say_once(value: Any, validate: Callable[[Any], Any]) -> Any:
    """One sentence in place of one about each member of the union."""
    try:
        return validate(value)
    except ValidationError:
        raise PydanticCustomError(
            "filter", 'must be a value, a list of values, or {"min": 5, "max": 20}'
        ) from None


_Wanted = Annotated[
    _Value
    | Annotated[list[_Value], Field(max_length=MAX_VALUES, fail_fast=True)]
    | Range,
    WrapValidator(_say_once),
]
_FieldName = Annotated[str, StringConstraints(max_length=60)]
Filter = Annotated[dict[_FieldName, _Wanted], Field(max_length=MAX_FIELDS)]


class RecommendRequest(Strict):
    """A history, and what is wanted of its continuation."""

    model_config = with_examples(
        {"history": ["item-12", "item-7"], "k": 5},
        {
            "history": ["item-12"],
            "filter": {"category": ["Shampoo"], "price": {"max": 20}},
            "epsilon": 0.2,
        },
        {"history": ["item-12"], "temperature": 1.0, "seed": 3},
    )

    history: ItemIds = Field(description="Item ids, oldest first.")
    k: int = Field(10, ge=1, le=MAX_K, description="Items wanted.")
    user: Annotated[_Text, BeforeValidator(_as_digits)] | None = Field(
        None, description="The user's id, if there is one."
    )
    exclude: ItemIds = Field([], description="Items not to recommend.")
    exclude_history: bool = Field(True, description="Nor those in the history.")
    filter: Filter | None = Field(
        None,
        description="Fields and the values, or the range, that pass; GET /catalogue "
        "lists them.",
    )
    prefix: Annotated[
        list[Annotated[int, Field(ge=0, le=MAX_CODEWORD)] | None],
        Field(max_length=MAX_LEVELS),
    ] = Field([], description="Codewords that Semantic IDs begin with; null for any.")
    temperature: float | None = Field(
        None, ge=1e-3, le=1e3, description="Draw at this temperature, not the best."
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="Of the draws.")
    epsilon: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the list kept for items the training hasn't seen.",
    )
    exact: bool = Field(False, description="Score every item; takes longer.")

    def to_request(self) -> requests.Request:
        """The same for the recommender; InputError if fields contradict each other."""
        return requests.Request(**self.model_dump(exclude_none=True))


class BatchRequest(Strict):
    """Several requests, answered together from one version of the catalogue."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1, fail_fast=True)]


class BatchAnswer(BaseModel):
    """One answer per request, in their order."""

    answers: list[Answer]


class ItemSearch(BaseModel):
    """Words to look for; none lists the most popular items."""

    model_config = ConfigDict(extra="forbid")

    q: str = Field("", max_length=200, description="Words of titles and brands.")
    limit: int = Field(20, ge=1, le=100)
    offset: int = Field(0, ge=0, le=1_000_000)


class ItemList(BaseModel):
    """Items found, the best known first."""

    items: list[ShownItem]
    total: int = Field(description="How many there are in all.")
    version: int


class SimilarSearch(BaseModel):
    """How items are to be compared."""

    model_config = ConfigDict(extra="forbid")

    by: Literal["prefix", "embedding"] = "prefix"
    k: int = Field(10, ge=1, le=100)


class SimilarList(BaseModel):
    """The most like it first."""

    items: list[SimilarItem]
    version: int


class FieldValues(BaseModel):
    """A field that filters can name."""

    values: dict[str, int] = Field(
        description="The most frequent values, and how many items have each."
    )


class CatalogueAnswer(BaseModel):
    """What is being recommended from."""

    version: int
    num_items: int
    num_new: int = Field(description="Items that the training has never seen.")
    capacity: int = Field(description="Items there is room for.")
    codebook_sizes: list[int] = Field(description="One per level of a Semantic ID.")
    most_k: int = Field(description="Longest list, unless exact.")
    most_history: int = Field(description="Latest items that the model reads.")
    most_requests: int = Field(description="Histories in one batch.")
    dense_weight: float = Field(
        description="Of log p(item) in scores, beside log p(Semantic ID); 0 for none."
    )
    fields: dict[str, FieldValues]


class CatalogueVersion(BaseModel):
    """Of the catalogue that is recommended from."""

    version: int


class ServedModel(BaseModel):
    """A bundle that answers."""

    bundle: str = Field(description="Its folder's name.")
    model: str = Field(description="The beginning of its hash, as answers name it.")
    version: int = Field(description="Of its catalogue.")
    share: float = Field(description="Of the requests.")


class ServedModels(BaseModel):
    """The main one, and the candidate where there is one."""

    models: list[ServedModel]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "compiling", "draining", "stopping"]
