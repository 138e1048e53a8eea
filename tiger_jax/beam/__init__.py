"""The stages before training as Apache Beam pipelines, for data beyond one machine.

Every pipeline reads folders of shards and writes one, calling on each shard, or on
each bucket of rows that belong together, the functions that the local stages call.
What they write is equal to what the local stages write, in as many files as asked.
"""
