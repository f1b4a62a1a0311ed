"""The training loop, and what it is made of: network, objective, optimiser, score, run folder."""
