"""Preparation: turns a table and its pictures into a clean dataset, split by product."""
