"""WebDataset shards: tars, their index, manifests, and the one door to storage. No Ray, no torch."""
