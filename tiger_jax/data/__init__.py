"""Raw data in: a shop's items and interactions become catalogue and histories."""
