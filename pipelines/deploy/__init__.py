"""Manifests of `infra/k8s` and jobs on a cluster; loads no pipeline.

`render.render_overlay` renders an overlay, `check.find_problems` checks it; `kube.Kubernetes` and
`jobs.RayCluster` run its jobs.
"""
