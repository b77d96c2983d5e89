"""Models: loading, adapters, the frozen reference, log-probs, and a uniform view of the weights."""
