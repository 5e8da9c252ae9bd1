"""The cluster of the overlay `local` as processes of this machine, without Kubernetes."""
