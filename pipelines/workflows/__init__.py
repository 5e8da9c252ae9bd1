"""Whole pipelines: one run, many trials, ablations, published protocols."""
