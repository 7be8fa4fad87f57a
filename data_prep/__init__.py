"""Images in, shards out. Knows nothing of models or schedulers."""
