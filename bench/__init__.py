"""Benchmarks of Tall Tree against its peers: `python -m bench rl | sample | scale` (docs/performance.md)."""
