"""A small web of known truth: drawn scenes, captions, planted defects, and a small CLIP trained on them."""
