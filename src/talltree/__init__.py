"""Tall Tree: reinforcement learning for language models small enough to own."""

__version__ = "0.1.0"
