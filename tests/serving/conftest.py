"""The exported bundle that this folder's tests share."""

from bundle_fixtures import folder, recommender, tiny, tiny_recommender

__all__ = ["folder", "recommender", "tiny", "tiny_recommender"]
