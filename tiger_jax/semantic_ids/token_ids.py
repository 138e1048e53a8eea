"""Codewords as token numbers of one vocabulary, and back.

Token 0 is padding and the decoder's start; there is no end token, since every
Semantic ID has the same length. Then come level 0's codewords, level 1's, …, the
collision level's, and last the hashed user tokens:

    token(level l, codeword c) = 1 + K_0 + … + K_{l-1} + c
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, UInt32

from tiger_jax.errors import InputError

PADDING = 0


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """Which token number stands for which codeword or user.

    Attributes:
        codebook_sizes: Codewords per level, T of them, the collision level last.
        num_user_tokens: Tokens that users are hashed to; 0 for no user token.

    Examples:
        >>> layout = TokenLayout((4, 4, 2), num_user_tokens=3)
        >>> layout.level_offsets, layout.first_user_token, layout.vocab_size
        ((1, 5, 9), 11, 14)
        >>> layout.tokens_of(np.array([3, 0, 1])).tolist()
        [4, 5, 10]
        >>> layout.codes_of(np.array([4, 5, 10])).tolist()
        [3, 0, 1]
    """

    codebook_sizes: tuple[int, ...]
    num_user_tokens: int = 0

    def __post_init__(self) -> None:
        sizes = tuple(int(size) for size in self.codebook_sizes)
        object.__setattr__(self, "codebook_sizes", sizes)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"every level needs a codeword, got sizes {sizes}")
        if self.num_user_tokens < 0:
            raise ValueError(f"num_user_tokens is negative: {self.num_user_tokens}")

    @property
    def semantic_id_length(self) -> int:
        """T: tokens in one Semantic ID."""
        return len(self.codebook_sizes)

    @property
    def level_offsets(self) -> tuple[int, ...]:
        """The token number of each level's codeword 0."""
        return tuple(itertools.accumulate(self.codebook_sizes[:-1], initial=1))

    @property
    def first_user_token(self) -> int:
        return 1 + sum(self.codebook_sizes)

    @property
    def vocab_size(self) -> int:
        """V: padding, codewords and user tokens together."""
        return self.first_user_token + self.num_user_tokens

    def tokens_of(
        self, codes: Int[np.ndarray, "*axes T"]
    ) -> Int32[np.ndarray, "*axes T"]:
        return (codes + np.asarray(self.level_offsets)).astype(np.int32)

    def codes_of(
        self, tokens: Int[np.ndarray, "*axes T"]
    ) -> Int32[np.ndarray, "*axes T"]:
        """Codewords of whole Semantic IDs' tokens; a ValueError at a wrong level."""
        codes = tokens - np.asarray(self.level_offsets)
        if ((codes < 0) | (codes >= np.asarray(self.codebook_sizes))).any():
            raise ValueError("a token stands at a level that it does not belong to")
        return codes.astype(np.int32)

    def user_tokens(
        self, user_hashes: UInt32[np.ndarray, " U"]
    ) -> Int32[np.ndarray, " U"]:
        """The token of each user: its hash modulo the number of user tokens."""
        if not self.num_user_tokens:
            raise ValueError("this layout has no user tokens")
        return (self.first_user_token + user_hashes % self.num_user_tokens).astype(
            np.int32
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "TokenLayout":
        """Reads what `to_json` wrote; an `InputError` if it isn't that."""
        try:
            return cls(tuple(value["codebook_sizes"]), int(value["num_user_tokens"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a token layout: {value!r} ({error})") from error
