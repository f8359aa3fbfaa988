"""What a model is trained by, beside the head: see `base.py`. The likelihood that judges it is always that of the fine
tokens."""
