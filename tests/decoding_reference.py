"""Slow, obvious searches over a dictionary, and a model they share with the real one.

The model is a table: what it says about a prefix depends on the request and on every
codeword of the prefix, through a hash that walks over the table's rows.
"""

import itertools
from collections import defaultdict

import jax.numpy as jnp
import numpy as np

ROWS = 61


def make_tables(rng, codebook_sizes, *, step=None):
    """One table of logits a level; multiples of `step`, so that sums tie exactly."""
    tables = []
    for size in codebook_sizes:
        table = rng.normal(size=(ROWS, size))
        if step is not None:
            table = np.round(table / step) * step
        tables.append(table.astype(np.float32))
    return tables


def next_row(row, codeword, level):
    return (row * 7 + codeword * 3 + level) % ROWS


def init_decode(tables, requests):
    """Requests int32[B] begin at row `request`."""
    del tables
    return requests[:, None] % ROWS


def decode_step(tables, rows, codewords, parents, level):
    rows = jnp.take_along_axis(rows, parents, axis=1)
    if level:
        rows = next_row(rows, codewords, level)
    return tables[level][rows], rows


class Reference:
    """A catalogue as a dictionary from every prefix to its children."""

    def __init__(self, codes, tables, normalize):
        self.codes = [tuple(int(c) for c in row) for row in codes]
        self.item = {code: i for i, code in enumerate(self.codes)}
        self.length = len(self.codes[0])
        self.tables = [table.astype(np.float64) for table in tables]
        self.normalize = normalize

    def children(self, items):
        children = defaultdict(set)
        for item in items:
            code = self.codes[item]
            for level in range(self.length):
                children[code[:level]].add(code[level])
        return children

    def log_probs(self, row, level, allowed):
        logits = self.tables[level][row]
        if self.normalize == "level":
            return logits - np.log(np.exp(logits).sum())
        if self.normalize == "children":
            return logits - np.log(np.exp(logits[sorted(allowed)]).sum())
        return logits

    def search(self, request, num_beams, items=None):
        """Beam search among `items`: (item, score) pairs, best first."""
        items = range(len(self.codes)) if items is None else items
        children = self.children(items)
        beams = [((), 0.0, request % ROWS)]
        for level in range(self.length):
            found = []
            for prefix, score, row in beams:
                allowed = children[prefix]
                if level:
                    row = next_row(row, prefix[-1], level)
                if allowed:
                    log_probs = self.log_probs(row, level, allowed)
                    found += [
                        ((*prefix, c), score + log_probs[c], row) for c in allowed
                    ]
            # Ties go to the smaller Semantic ID; the rounding makes sums in another
            # precision tie where they are meant to.
            found.sort(key=lambda beam: (-round(beam[1], 9), beam[0]))
            beams = found[:num_beams]
        return [(self.item[prefix], score) for prefix, score, _ in beams]

    def score(self, request, items=None):
        """Every item's score, by teacher forcing along its Semantic ID."""
        items = range(len(self.codes)) if items is None else items
        children = self.children(items)
        scores = {}
        for item in items:
            code, row, score = self.codes[item], request % ROWS, 0.0
            for level, codeword in enumerate(code):
                if level:
                    row = next_row(row, code[level - 1], level)
                score += self.log_probs(row, level, children[code[:level]])[codeword]
            scores[item] = score
        return scores

    def exhaustive(self, request, num_results, items=None):
        """The best items by their scores, (item, score) pairs."""
        scores = self.score(request, items)
        order = sorted(scores, key=lambda i: (-round(scores[i], 9), self.codes[i]))
        return [(item, scores[item]) for item in order[:num_results]]

    def unconstrained(self, request, num_beams):
        """Beam search over every codeword: (Semantic ID, score) pairs."""
        beams = [((), 0.0, request % ROWS)]
        for level in range(self.length):
            found = []
            for prefix, score, row in beams:
                if level:
                    row = next_row(row, prefix[-1], level)
                log_probs = self.log_probs(row, level, None)
                found += [
                    ((*prefix, c), score + log_probs[c], row)
                    for c in range(len(log_probs))
                ]
            found.sort(key=lambda beam: (-round(beam[1], 9), beam[0]))
            beams = found[:num_beams]
        return [(prefix, score) for prefix, score, _ in beams]


def random_codes(rng, codebook_sizes, num_items, *, skew=False):
    """Distinct Semantic IDs in random order; skewed ones share most prefixes."""
    size = int(np.prod(codebook_sizes, dtype=np.int64))
    num_items = min(num_items, size)
    if not skew:
        ids = rng.choice(size, num_items, replace=False)
        return np.stack(np.unravel_index(ids, codebook_sizes), axis=1).astype(np.int32)
    found = {}
    while len(found) < num_items:
        draw = [min(int(rng.zipf(1.3)) - 1, k - 1) for k in codebook_sizes]
        if tuple(draw) in found:
            draw = [int(rng.integers(k)) for k in codebook_sizes]
        found[tuple(draw)] = None
    codes = np.array(list(found), np.int32)
    return codes[rng.permutation(num_items)]


def chain_codes(rng, codebook_sizes, num_items):
    """Items that part at level 0 or 1 and then go on alone: single-child tails."""
    heads = list(itertools.product(*(range(k) for k in codebook_sizes[:2])))
    chosen = rng.choice(len(heads), min(num_items, len(heads)), replace=False)
    rows = [
        [*heads[i], *(int(rng.integers(k)) for k in codebook_sizes[2:])] for i in chosen
    ]
    return np.array(rows, np.int32)
