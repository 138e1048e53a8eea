"""TIGER: a Transformer that reads a history's Semantic IDs and writes the next one.

Encoder input: a hashed user token, if there are any, then the T tokens of each
item, oldest item first, padding (0) on the right. The decoder starts from token
0 and writes the next item's T codewords, coarse to fine.

References:
  Rajput et al. 2023, "Recommender Systems with Generative Retrieval", 3.2.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from tiger_jax.config import config
from tiger_jax.models import attention, generator, item_structure, layers, transformer
from tiger_jax.semantic_ids.token_ids import PADDING, TokenLayout


@config("tiger")
class TigerConfig(transformer.TransformerConfig):
    """The model and its loss; vocabulary sizes come from the `TokenLayout`.

    Attributes:
      output: What a codeword competes with: "level", the codewords of its own
        level, or "vocabulary", every token, as in the paper.
      is_tied: The output head is the token embedding table, its logits scaled
        by d_model^-0.5.
      z_loss: Weight of log(Z)^2, which keeps the softmax's normaliser near 1;
        T5X's default is 1e-4.
      has_level_embeddings: Tells the encoder each token's level.
      num_recencies: Tells the encoder how many items came after, up to this many;
        0 tells it nothing.
      has_item_context: Tells each token what its whole item is
        (`item_structure.ItemContext`).
      encoder_positions: What the encoder has a position for: "tokens", as in the
        paper, or "items", whose tokens are joined first
        (`item_structure.ItemTokens`): T times fewer positions.
    """

    output: Literal["level", "vocabulary"] = "level"
    is_tied: bool = True
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    has_level_embeddings: bool = False
    num_recencies: int = 0
    has_item_context: bool = False
    encoder_positions: Literal["tokens", "items"] = "tokens"

    def build(self, layout: TokenLayout) -> "Tiger":
        return Tiger(self, layout)

    @property
    def has_item_structure(self) -> bool:
        """Whether the encoder is told anything beyond the flat tokens."""
        return bool(
            self.has_level_embeddings or self.num_recencies or self.has_item_context
        )

    @property
    def embedding_std(self) -> float:
        """The standard deviation that the table of token embeddings starts with."""
        return 1.0

    @property
    def normalize(self) -> Literal["level", "given"]:
        """What makes a level's logits log-probabilities in a search.

        A level's own softmax where codewords compete with their level's alone; where
        they compete with every token, `decode_step` has done it.
        """
        return "level" if self.output == "level" else "given"


class DecodeCache(NamedTuple):
    """What decoding keeps between levels: per request, and per beam."""

    is_position: Bool[Array, "B P"]
    memories: tuple[attention.Memory, ...]
    pasts: tuple[tuple[attention.BeamPosition, ...], ...]


class Tiger(nn.Module):
    """The encoder-decoder with its token embeddings and output heads."""

    config: TigerConfig
    layout: TokenLayout

    def setup(self) -> None:
        table = (self.layout.vocab_size, self.config.d_model)
        init = nn.with_logical_partitioning(
            nn.initializers.normal(1.0), ("vocab", "embed")
        )
        self.token_embeddings = self.param("token_embeddings", init, table)
        if not self.config.is_tied:
            self.output_head = layers.linear_param(
                self, "output_head", table, ("vocab", "embed"), self.config.d_model
            )
        if self.config.has_item_structure:
            self.item_structure = item_structure.ItemStructure(
                self.config.has_level_embeddings,
                self.config.num_recencies,
                self.config.has_item_context,
                self.layout.semantic_id_length,
            )
        if self.config.encoder_positions == "items":
            self.item_tokens = item_structure.ItemTokens(self.layout.semantic_id_length)
        self.encoder = transformer.Encoder(self.config)
        self.decoder = transformer.Decoder(self.config)

    def __call__(
        self,
        encoder_input_tokens: Int[Array, "B S"],
        decoder_input_tokens: Int[Array, "B T"],
        *,
        is_training: bool,
    ) -> Float[Array, "B T classes"]:
        """Computes the logits of every target position, given those before it.

        Args:
          encoder_input_tokens: The history, padded with 0 on the right.
          decoder_input_tokens: Token 0, then the target without its last token.
          is_training: Applies dropout; needs an rng named "dropout".

        Returns:
          Logits of each level's codewords, -inf beyond a level's codebook if
          another one is larger; of all V tokens with output="vocabulary".
        """
        encoded, is_position = self.encode(
            encoder_input_tokens, is_training=is_training
        )
        states = self.decoder(
            self._embed(decoder_input_tokens),
            encoded,
            is_position,
            is_training=is_training,
        )
        if self.config.output == "vocabulary":
            return self._logits(states, 0, self.layout.vocab_size)
        levels = range(self.layout.semantic_id_length)
        return generator.stack_levels(
            [self._level_logits(states[:, l], l) for l in levels]
        )

    def encode(
        self, tokens: Int[Array, "B S"], *, is_training: bool
    ) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
        """Encodes histories; says which of the P positions are no padding."""
        x, is_position = self._embed(tokens), tokens != PADDING
        first = min(self.layout.num_user_tokens, 1)  # the user token
        items, is_item = x[:, first:], is_position[:, first:]
        if self.config.has_item_structure:
            items = self.item_structure(items, is_item)
        if self.config.encoder_positions == "items":
            items, is_item = self.item_tokens(items, is_item)
        x = jnp.concatenate([x[:, :first], items], axis=1)
        is_position = jnp.concatenate([is_position[:, :first], is_item], axis=1)
        return self.encoder(x, is_position, is_training=is_training), is_position

    def init_decode(self, encoder_input_tokens: Int[Array, "B S"]) -> DecodeCache:
        """Encodes histories and keeps what every beam of a request shares."""
        encoded, is_position = self.encode(encoder_input_tokens, is_training=False)
        memories = self.decoder.init_memory(encoded)
        pasts = tuple(() for _ in memories)
        return DecodeCache(is_position, memories, pasts)

    def decode_step(
        self,
        cache: DecodeCache,
        codewords: Int[Array, "B M"],
        parents: Int[Array, "B M"],
        level: int,
    ) -> tuple[Float[Array, "B M K"], DecodeCache]:
        """Computes each beam's logits of the codewords of `level`."""
        if level == 0:
            tokens = jnp.full_like(codewords, PADDING)
        else:
            tokens = codewords + self.layout.level_offsets[level - 1]
        states, pasts = self.decoder.step(
            self._embed(tokens), cache.pasts, cache.memories, cache.is_position, parents
        )
        cache = cache._replace(pasts=pasts)
        if self.config.output == "level":
            return self._level_logits(states, level), cache
        first = self.layout.level_offsets[level]
        logits = self._logits(states, 0, self.layout.vocab_size)
        level_logits = logits[..., first : first + self.layout.codebook_sizes[level]]
        return level_logits - jax.nn.logsumexp(logits, -1, keepdims=True), cache

    def _embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        return self.token_embeddings[tokens].astype(self.config.dtype)

    def _level_logits(
        self, states: Float[Array, "*batch D"], level: int
    ) -> Float[Array, "*batch K"]:
        first = self.layout.level_offsets[level]
        return self._logits(states, first, first + self.layout.codebook_sizes[level])

    def _logits(
        self, states: Float[Array, "*batch D"], first: int, end: int
    ) -> Float[Array, "*batch classes"]:
        if self.config.is_tied:
            head = self.token_embeddings[first:end] * self.config.d_model**-0.5
        else:
            head = self.output_head[first:end]
        # Not rounded to the compute dtype, in which the best of many are often equal.
        return jnp.matmul(
            states, head.astype(states.dtype).T, preferred_element_type=jnp.float32
        )
