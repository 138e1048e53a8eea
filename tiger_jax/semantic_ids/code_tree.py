"""The tree of Semantic IDs in a form that a browser draws: items in its order, packed.

A node of the tree, a prefix, is a run of neighbours, so the codes alone give all nodes.
What they can't give is sent along: titles, categories, counts, and a few telling words
for each node.
"""

import base64
import gzip
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

_WORD = re.compile(r"[^\W\d_]{3,}")
_STOP = frozenset(
    "and for the with from new per der die das und pack set size ounce ounces".split()
)
WORDS_SHOWN, MAX_TITLE = 3, 90
# More first codewords than this are too many to look at side by side.
_MAX_FIRST = 64
_MAX_IN_GROUP = 32
_NO_CATEGORY = 0xFFFF


def pack_tree(
    codes: Int[np.ndarray, "N T"],
    num_levels: int,
    codebook_sizes: Sequence[int],
    *,
    item_ids: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[str],
    counts: Int[np.ndarray, " N"],
    vectors: Float[np.ndarray, "N E"] | None = None,
) -> bytes:
    """Gzipped JSON; arrays in it are base64 of little-endian numbers.

    More than 64 first codewords come in groups of like ones, where there are vectors to
    tell them by: ``grouped`` is true then, and a level above the first says the group.

    Args:
        num_levels: Learned ones, without the collision level.
        categories: One name per item, "" for none.
        counts: Interactions of each item.
        vectors: Laid out in the plane by their two main directions, if given.
    """
    grouped = False
    if vectors is not None and len(np.unique(codes[:, 0])) > _MAX_FIRST:
        grouped = True
        groups = group_codewords(codes[:, 0], vectors)
        codes = np.column_stack([groups, codes])
        num_levels += 1
    order = np.lexsort(codes.T[::-1])
    codes = codes[order]
    titles = [titles[n] for n in order]
    named = [categories[n] for n in order]
    found, numbers = np.unique(named, return_inverse=True)
    by_size = np.argsort(-np.bincount(numbers, minlength=len(found)), kind="stable")
    rank = np.empty(len(found), np.int64)
    rank[by_size] = np.arange(len(found))
    category = np.where(found[numbers] == "", _NO_CATEGORY, rank[numbers])
    tree: dict[str, Any] = {
        "num_items": len(codes),
        "length": codes.shape[1],
        "levels": num_levels,
        "grouped": grouped,
        "sizes": [int(size) for size in codebook_sizes],
        "codes": _encode(codes, "<u2" if max(codebook_sizes) <= 1 << 16 else "<u4"),
        "ids": [item_ids[n] for n in order],
        "titles": [title[:MAX_TITLE] for title in titles],
        "categories": found[by_size].tolist(),
        "category": _encode(np.minimum(category, _NO_CATEGORY), "<u2"),
        "counts": _encode(counts[order], "<u4"),
        "labels": label_nodes(codes[:, :num_levels], titles),
        "places": None if vectors is None else _encode(_lay_out(vectors[order]), "<i2"),
    }
    text = json.dumps(tree, ensure_ascii=True, separators=(",", ":"))
    return gzip.compress(text.encode(), 6, mtime=0)


def group_codewords(
    codewords: Int[np.ndarray, " N"], vectors: Float[np.ndarray, "N E"]
) -> Int[np.ndarray, " N"]:
    """Numbers groups of at most 32 codewords whose items' vectors are alike.

    The codewords, each at the mean of its items, are halved along their main direction
    until no part has more; neighbouring groups have neighbouring numbers.

    Examples:
        >>> codewords = np.arange(64)
        >>> groups = group_codewords(codewords, np.cos(codewords / 20.0)[:, None])
        >>> bool((groups[:32] == groups[0]).all()), sorted(set(groups.tolist()))
        (True, [0, 1])
    """
    used, of_item, counts = np.unique(
        codewords, return_inverse=True, return_counts=True
    )
    means = np.zeros((len(used), vectors.shape[1]))
    np.add.at(means, of_item, vectors)
    means /= counts[:, None]
    parts = [np.arange(len(used))]
    while max(map(len, parts)) > _MAX_IN_GROUP:
        parts = [half for part in parts for half in _halve(part, means)]
    group_of = np.empty(len(used), np.int64)
    for number, part in enumerate(parts):
        group_of[part] = number
    return group_of[of_item]


def _halve(
    part: Int[np.ndarray, " K"], means: Float[np.ndarray, "_ E"]
) -> list[Int[np.ndarray, " _"]]:
    if len(part) <= _MAX_IN_GROUP:
        return [part]
    along = _main_directions(means[part], 1)[:, 0]
    if along[-1] < along[0]:  # as the part itself runs, so that neighbours stay so
        along = -along
    return np.array_split(part[np.argsort(along, kind="stable")], 2)


def label_nodes(
    codes: Int[np.ndarray, "N L"], titles: Sequence[str]
) -> list[list[str]]:
    """Telling words of each node, level by level; "" for nodes of one item.

    A word tells of a node what it has more of than the node above it has: its share
    there times the logarithm of how much larger that is than its share above. A node
    without such a word is told from the whole catalogue instead.

    Args:
        codes: Sorted, as the nodes are numbered along them.
        titles: Beside them.
    """
    words: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    for item, title in enumerate(titles):
        for word in dict.fromkeys(_WORD.findall(title.lower())):
            if word not in _STOP:
                pairs.append((item, words.setdefault(word, len(words))))
    item_of, word_of = np.array(pairs or [(0, 0)], np.int64).T
    names = list(words) or [""]
    share_of_all = np.bincount(word_of, minlength=len(names)) / max(len(titles), 1)
    labels = []
    above = np.zeros(len(titles), np.int64)  # node of each item, one level up
    keys_above, share_above = np.arange(len(names)), share_of_all
    for level in range(codes.shape[1]):
        changes = (codes[1:, : level + 1] != codes[:-1, : level + 1]).any(1)
        node_of = np.concatenate([[0], np.cumsum(changes)])
        sizes = np.bincount(node_of)
        keys, counts = np.unique(
            node_of[item_of] * len(names) + word_of, return_counts=True
        )
        node, word = np.divmod(keys, len(names))
        share = counts / sizes[node]
        parent = above[np.concatenate([[0], np.flatnonzero(changes) + 1])]
        at = np.searchsorted(keys_above, parent[node] * len(names) + word)
        is_common = counts >= np.maximum(2, 0.15 * sizes[node])
        score = share * np.log(share / share_above[at])
        has_own = np.bincount(node, is_common & (score > 0), len(sizes)) > 0
        from_all = share * np.log(share / share_of_all[word])
        score = np.where(has_own[node], score, from_all)
        above, keys_above, share_above = node_of, keys, share
        tells = is_common & (score > 0)
        node, word, score = node[tells], word[tells], score[tells]
        best = np.lexsort((word, -score, node))
        chosen: list[list[str]] = [[] for _ in sizes]
        for i in best.tolist():
            own = chosen[node[i]]
            if len(own) < WORDS_SHOWN:
                own.append(names[word[i]])
        labels.append([" · ".join(own) for own in chosen])
    return labels


def _encode(array: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _lay_out(vectors: Float[np.ndarray, "N E"]) -> Int[np.ndarray, "N 2"]:
    """The two main directions of vectors of length 1, each from -32767 to 32767."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(length, 1e-12)
    places = _main_directions(unit, 2)
    return np.round(places / max(np.abs(places).max(), 1e-12) * 32767).astype(np.int64)


def _main_directions(
    vectors: Float[np.ndarray, "N E"], count: int
) -> Float[np.ndarray, "N c"]:
    """Where vectors lie along the directions in which they differ the most."""
    centred = (vectors - vectors.mean(0)).astype(np.float64)
    _, directions = np.linalg.eigh(centred.T @ centred)
    places = centred @ directions[:, -count:][:, ::-1]
    # A map is no worse for being mirrored: the same sign on every machine.
    ends = places[np.abs(places).argmax(0), np.arange(places.shape[1])]
    return places * np.where(ends < 0, -1, 1)
