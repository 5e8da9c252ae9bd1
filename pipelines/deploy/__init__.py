"""`dpmpp deploy`: the manifests of `infra/k8s` rendered, checked, and run on a cluster."""
