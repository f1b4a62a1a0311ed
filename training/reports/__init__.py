"""Reports: tables, pictures and pages from what training, evaluation and comparisons measured."""
