"""Search configurations with Ray Tune and Optuna.

`search.search` runs a `TuningRequest`; `spaces` and `schedulers` connect Optuna and Tune to it.
"""
