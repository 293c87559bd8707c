"""A run on a cluster: what it needs there, how it is submitted, and what is wrong with the cluster."""
