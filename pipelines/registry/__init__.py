"""The MLflow model registry: register, verify, promote."""
