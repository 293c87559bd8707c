"""The KServe predictor: asks the tuned model about pictures, over HTTP."""
