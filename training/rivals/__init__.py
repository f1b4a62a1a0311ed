"""Rivals: other kinds of networks, trained with the data, schedule and number of parameters of a recipe."""
