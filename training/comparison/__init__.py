"""Comparison: one network under several gradients, each trained and measured in a process of its own."""
