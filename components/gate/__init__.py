"""The gate: decides whether a challenger may be deployed, and fails closed."""
