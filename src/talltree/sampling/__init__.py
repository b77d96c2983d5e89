"""Sampling: the generation engine for small models."""
