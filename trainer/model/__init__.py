"""The model: vision tower, position-aware adapter, projection, language model."""
