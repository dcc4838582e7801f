"""The trainer reads curated shards through `shards` and never imports `curation`, `filters` or Ray Data."""
