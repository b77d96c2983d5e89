"""Evaluations: from samples or a model to metrics and rows."""
