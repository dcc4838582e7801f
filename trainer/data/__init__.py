"""From a sample of a shard to a packed batch."""
