"""Item vectors from who bought what after what: the collaborative signal.

Text says what an item is; histories say what it is bought with. Joined to the text
vector before quantizing, these vectors make items that follow one another share
codewords, so that a recommender finds in the codes what it would otherwise have to
learn from its examples.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from tiger_jax.config import config
from tiger_jax.errors import InputError
from tiger_jax.histories import Histories
from tiger_jax.vectors import to_unit_length

if TYPE_CHECKING:
    import scipy.sparse


@config("collaborative")
class CollaborativeConfig:
    """How the vectors are made, and what they weigh beside the text.

    Attributes:
        dims: Their dimensions; at most the number of items less one.
        weight: Their length, where the text vector has length 1; 0 would be text
            alone. An item that no training history holds has what it would be bought
            with by the items nearest in text (`item_vectors.fill_collaborative`).
        largest_distance: Items apart in a history that still count as together.
        smoothing: The power to which the context items' counts are raised, which
            keeps pairs with rare items from weighing too much.
        shift: What is subtracted from the pointwise mutual information before the
            negative part is cut off: the logarithm of the number of negative
            samples of the equivalent skip-gram.

    References:
        Levy and Goldberg 2014, "Neural Word Embedding as Implicit Matrix
        Factorization", 3.2 and 4.2; Levy et al. 2015, "Improving Distributional
        Similarity with Lessons Learned from Word Embeddings", 3.2 (smoothing).
    """

    dims: int = 64
    weight: float = 1.0
    largest_distance: int = 3
    smoothing: float = 0.75
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.dims < 1 or self.largest_distance < 1 or self.weight < 0:
            raise InputError(
                "collaborative.CollaborativeConfig needs dims and largest_distance of "
                f"at least 1 and a weight of at least 0, and has {self}"
            )


def embed_cooccurrence(
    train: Histories, num_items: int, config: CollaborativeConfig, *, seed: int = 0
) -> Float32[np.ndarray, "N C"]:
    """Factorises the items' shifted positive mutual information.

        M[a, b] = max(0, ln p(a, b) - ln p(a) - ln q(b) - shift)
        M ~ U S V^T,   vectors = U sqrt(S), each scaled to length 1

    with p(a, b) in proportion to the sum of 1 / distance over the places where a and
    b stand close in a training history, in either order, p(a) its margin, and q(b)
    in proportion to p(b)^smoothing.

    Args:
        train: Training histories only: the items to be predicted must not be in
            them.
    """
    from sklearn.utils.extmath import randomized_svd

    dims = min(config.dims, num_items - 1)
    information = _mutual_information(_count_pairs(train, num_items, config), config)
    left, values, _ = randomized_svd(
        information, n_components=dims, n_iter=4, random_state=seed
    )
    vectors = (left * np.sqrt(values)[None]).astype(np.float32)
    vectors = np.pad(vectors, ((0, 0), (0, config.dims - dims)))
    return to_unit_length(vectors)


def _count_pairs(
    train: Histories, num_items: int, config: CollaborativeConfig
) -> "scipy.sparse.csr_array":
    """The symmetric w(a, b), without an item's pairs with itself."""
    import scipy.sparse

    user = np.repeat(np.arange(train.num_users), train.lengths)  # [total]
    rows, columns, weights = [], [], []
    for distance in range(1, min(config.largest_distance, len(user) - 1) + 1):
        first, second = train.items[:-distance], train.items[distance:]
        counted = (user[distance:] == user[:-distance]) & (first != second)
        rows += [first[counted], second[counted]]
        columns += [second[counted], first[counted]]
        weights += [np.full(2 * counted.sum(), 1.0 / distance)]
    if not rows:
        return scipy.sparse.csr_array((num_items, num_items), dtype=np.float64)
    pairs = (np.concatenate(rows), np.concatenate(columns))
    entries = np.concatenate(weights), pairs
    return scipy.sparse.coo_array(entries, shape=(num_items, num_items)).tocsr()


def _mutual_information(
    pairs: "scipy.sparse.csr_array", config: CollaborativeConfig
) -> "scipy.sparse.csr_array":
    import scipy.sparse

    pairs = pairs.tocoo()
    counts = np.bincount(pairs.row, pairs.data, minlength=pairs.shape[0])  # [N]
    share = counts / max(counts.sum(), 1e-12)
    context = counts**config.smoothing
    context /= max(context.sum(), 1e-12)
    joint = pairs.data / max(counts.sum(), 1e-12)
    values = np.log(joint / (share[pairs.row] * context[pairs.col])) - config.shift
    kept = values > 0
    entries = values[kept], (pairs.row[kept], pairs.col[kept])
    return scipy.sparse.coo_array(entries, shape=pairs.shape).tocsr()
