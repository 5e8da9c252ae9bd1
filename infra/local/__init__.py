"""The cluster of the overlay `local`, without Kubernetes: what its pods run, as processes here."""
