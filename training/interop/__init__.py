"""Interoperation: models to and from the Hugging Face hub, and weights from the authors of the JFB paper."""
