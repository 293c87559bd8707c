"""Fetching pictures and tables from the web, within what a profile allows."""
