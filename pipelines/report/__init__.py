"""What a run came to: its summary, as text and as a page."""
