"""Commands of ``python -m training``, one per file."""
