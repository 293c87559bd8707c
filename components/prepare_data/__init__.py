"""The first step: a table and its pictures become a clean, split dataset."""
