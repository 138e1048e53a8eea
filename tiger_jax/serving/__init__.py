"""A recommender behind HTTP: routes, batching, limits, and the server itself."""
