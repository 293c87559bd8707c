"""Fetch pictures and tables from the web, within the limits of a profile."""
