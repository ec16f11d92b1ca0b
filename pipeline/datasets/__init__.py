"""Images, captions and splits."""
