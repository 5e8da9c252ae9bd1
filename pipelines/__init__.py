"""Orchestration on Ray and MLflow; the method itself is `dpmpp_core`."""
