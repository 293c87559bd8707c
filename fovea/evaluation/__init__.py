"""How good answers are, how sure that is, and how it is written for people."""
