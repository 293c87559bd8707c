"""Where a model is deployed: a server on this machine, or an InferenceService of KServe."""
