"""Evaluation: accuracy and cost of a model at each tolerance and cap, label stops, and the time that solvers take."""
