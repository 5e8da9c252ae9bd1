"""Search configurations with Ray Tune and Optuna."""
