"""URL lists -> raw pairs: what runs in the processes that download."""
