"""TigerVocabulary: a seqio vocabulary over Semantic ID tokens."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence

from tiger_jax.input_pipeline.pair_source import Shop
from tiger_jax.input_pipeline.quiet_tensorflow import seqio, tf
from tiger_jax.semantic_ids.token_ids import TokenLayout


class TigerVocabulary(seqio.Vocabulary):
    """Tokens as readable text, and back.

    Codeword 12 of the first level reads ``<a_12>``, of the second ``<b_12>``; user
    token 7 reads ``<user_7>``; padding is the empty string. There is no end token
    and no unknown token. Vocabularies over equal layouts are equal, so tasks over
    one codebook can be mixed.

    Examples:
        >>> vocabulary = TigerVocabulary(TokenLayout((4, 4), num_user_tokens=2))
        >>> vocabulary.decode([10, 3, 8, 0, 0])
        '<user_1><a_2><b_3>'
        >>> vocabulary.encode("<user_1><a_2><b_3>")
        [10, 3, 8]
    """

    def __init__(self, source: Shop | TokenLayout | Callable[[], TokenLayout]) -> None:
        """Takes a layout, or whom to ask for it at first use: a shop, a function."""
        self._source = source
        super().__init__()

    @property
    def layout(self) -> TokenLayout:
        if isinstance(self._source, TokenLayout):
            return self._source
        return self._source.layout if isinstance(self._source, Shop) else self._source()

    @property
    def eos_id(self) -> None:
        return None

    @property
    def unk_id(self) -> None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.layout.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        pieces = re.findall(r"<[^<>]*>|[^<>]+|[<>]", s)
        numbers = _token_numbers(self.layout)
        unknown = [piece for piece in pieces if piece not in numbers]
        if unknown:
            raise ValueError(f"{unknown[0]!r} in {s!r} is no token of {self.layout}")
        return [numbers[piece] for piece in pieces]

    def _decode(self, ids: Iterable[int]) -> str:
        texts = _token_texts(self.layout)
        return "".join(texts[int(i)] for i in ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        with tf.init_scope():
            texts = tf.constant(_token_texts(self.layout))
            numbers = tf.range(self.vocab_size, dtype=tf.int32)
            rows = tf.lookup.KeyValueTensorInitializer(texts, numbers)
            table = tf.lookup.StaticHashTable(rows, default_value=-1)
        pieces = tf.strings.split(tf.strings.regex_replace(s, "><", "> <"), " ")
        tokens = table.lookup(pieces)
        known = tf.debugging.assert_non_negative(
            tokens, message="text with an unknown token"
        )
        with tf.control_dependencies([known] if known is not None else []):
            return tf.identity(tokens)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        texts = tf.constant(_token_texts(self.layout))
        return tf.strings.reduce_join(tf.gather(texts, ids), axis=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TigerVocabulary) and self.layout == other.layout

    def __hash__(self) -> int:
        return hash(self.layout)

    def __str__(self) -> str:
        return f"TigerVocabulary({self.layout})"


@functools.lru_cache(maxsize=8)
def _token_texts(layout: TokenLayout) -> tuple[str, ...]:
    if layout.semantic_id_length > 26:
        raise ValueError(f"no letters for {layout.semantic_id_length} levels")
    texts = [""]
    for level, size in enumerate(layout.codebook_sizes):
        texts += [f"<{chr(ord('a') + level)}_{codeword}>" for codeword in range(size)]
    texts += [f"<user_{number}>" for number in range(layout.num_user_tokens)]
    return tuple(texts)


@functools.lru_cache(maxsize=8)
def _token_numbers(layout: TokenLayout) -> dict[str, int]:
    return {text: number for number, text in enumerate(_token_texts(layout)) if text}
