"""The pipeline: its graph, its settings, and what runs, compiles and submits it."""
