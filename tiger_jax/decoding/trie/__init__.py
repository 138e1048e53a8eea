"""The catalogue's Semantic IDs as a trie: sort, plan, build, save, shard."""

from tiger_jax.decoding.trie.planner import TriePlan as TriePlan
from tiger_jax.decoding.trie.planner import expected_case as expected_case
from tiger_jax.decoding.trie.planner import make_plan as make_plan
from tiger_jax.decoding.trie.planner import worst_case as worst_case
from tiger_jax.decoding.trie.prefixes import SortedPrefixes as SortedPrefixes
from tiger_jax.decoding.trie.prefixes import sort_prefixes as sort_prefixes
from tiger_jax.decoding.trie.sharded_trie import ShardedTrie as ShardedTrie
from tiger_jax.decoding.trie.trie import Trie as Trie
