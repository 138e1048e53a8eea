"""The exported bundle that this folder's tests share."""

from bundle_fixtures import coder, folder, recommender, tiny, tiny_recommender

__all__ = ["coder", "folder", "recommender", "tiny", "tiny_recommender"]
