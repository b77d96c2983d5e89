"""Stages: one module each, with one frozen `Config` and one `run(config)`; they hand over by files."""
