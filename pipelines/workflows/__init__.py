"""Whole runs, in order of stages or side by side.

`pipeline.run_pipeline` runs the stages declared in `pipeline.STAGES`, `ablation.ablate` a grid of
variants, `reproduce.reproduce` a published protocol; `options.Options` are their options.
"""
