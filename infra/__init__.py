"""Deployment: manifests, image, and a local cluster that runs them."""
