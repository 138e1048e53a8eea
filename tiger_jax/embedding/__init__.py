"""Item text to embeddings; the only room where torch may appear."""
