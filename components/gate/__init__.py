"""The gate: decides whether a tuned model may be deployed, and fails closed."""
