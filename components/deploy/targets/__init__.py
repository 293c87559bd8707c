"""The deployment targets: a server on this machine, or an InferenceService of KServe."""
