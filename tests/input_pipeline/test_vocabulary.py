import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiger_jax.input_pipeline.quiet_tensorflow import tf
from tiger_jax.input_pipeline.vocabulary import TigerVocabulary
from tiger_jax.semantic_ids.token_ids import TokenLayout

LAYOUT = TokenLayout((5, 4, 3), num_user_tokens=6)
VOCABULARY = TigerVocabulary(LAYOUT)
TOKENS = st.lists(st.integers(1, LAYOUT.vocab_size - 1), max_size=20)


def test_text_names_level_and_codeword():
    assert VOCABULARY.decode([13, 1, 6, 10]) == "<user_0><a_0><b_0><c_0>"
    assert VOCABULARY.decode([18, 5, 9, 12, 0, 0]) == "<user_5><a_4><b_3><c_2>"


@given(TOKENS)
def test_decoding_then_encoding_returns_the_tokens(tokens):
    text = VOCABULARY.decode(tokens)
    assert VOCABULARY.encode(text) == tokens
    assert VOCABULARY.decode_tf(tf.constant(tokens, tf.int32)).numpy().decode() == text
    if tokens:
        assert VOCABULARY.encode_tf(tf.constant(text)).numpy().tolist() == tokens


def test_batches_decode_row_by_row():
    rows = tf.constant([[1, 6, 10], [2, 0, 0]])
    assert VOCABULARY.decode_tf(rows).numpy().tolist() == [b"<a_0><b_0><c_0>", b"<a_1>"]


@pytest.mark.parametrize("text", ["<a_5>", "<d_0>", "<a_1> <b_1>", "a_1", "<a_01>"])
def test_unknown_text_is_an_error(text):
    with pytest.raises(ValueError, match="is no token of"):
        VOCABULARY.encode(text)
    with pytest.raises(tf.errors.InvalidArgumentError):
        VOCABULARY.encode_tf(tf.constant(text + "<x>"))


def test_every_token_has_a_text_of_its_own():
    texts = [VOCABULARY.decode([t]) for t in range(VOCABULARY.vocab_size)]
    assert len(set(texts)) == VOCABULARY.vocab_size == LAYOUT.vocab_size


def test_vocabularies_are_equal_if_their_layouts_are():
    assert TigerVocabulary(TokenLayout((5, 4, 3), 6)) == VOCABULARY
    assert TigerVocabulary(TokenLayout((5, 4, 3), 7)) != VOCABULARY
