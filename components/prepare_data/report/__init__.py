"""What people see of a dataset: its report, its card, and a preview before it is made."""
