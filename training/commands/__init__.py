"""Commands of ``python -m training``, one a file."""
