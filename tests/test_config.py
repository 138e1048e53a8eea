import dataclasses
from typing import Literal

import gin
import pytest

from tiger_jax.config import config
from tiger_jax.errors import InputError


@config("of_a_test")
class Sizes:
    width: int = 3
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    layers: tuple[int, ...] = (1,)
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}: it must be positive")


@config("of_a_test")
class MoreSizes(Sizes):
    depth: int = 1


def test_a_config_is_frozen_and_named_by_its_module_string():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sizes().width = 4
    try:
        gin.parse_config("of_a_test.Sizes.width = 7\nof_a_test.MoreSizes.depth = 2")
        assert gin.get_configurable(Sizes)().width == 7
        assert gin.get_configurable(MoreSizes)() == MoreSizes(depth=2)
    finally:
        gin.clear_config()


def test_a_list_becomes_a_tuple_and_an_int_passes_for_a_float():
    assert Sizes(layers=[2, 3]).layers == (2, 3)
    assert Sizes(rate=1).rate == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": "3"}, r"of_a_test\.Sizes\.width is '3': it must be of the type int"),
        ({"width": True}, "width is True"),
        ({"rate": "fast"}, "rate is 'fast'"),
        ({"kind": "c"}, "kind is 'c': it must be one of 'a', 'b'"),
        ({"layers": (1, "2")}, "layers is"),
        ({"limit": 0.5}, "limit is 0.5"),
        ({"width": 0}, r"of_a_test\.Sizes: width is 0: it must be positive"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(given, message):
    with pytest.raises(InputError, match=message) as caught:
        Sizes(**given)
    assert "\n" not in str(caught.value)


def test_a_config_checks_what_its_parent_checks():
    with pytest.raises(InputError, match="width is 0"):
        MoreSizes(width=0)
