"""What the model reads: tokens, item vectors, item similarity and the online statistics."""
