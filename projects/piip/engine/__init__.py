"""Training, evaluation and prediction: the loop, its hooks, and what surrounds them."""
