"""The folders on disk: manifests, hashes, arrays, chunks, the lock."""
