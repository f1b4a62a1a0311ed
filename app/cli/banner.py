"""The banner: what ``python -m app`` prints when it is ready."""

import json
import shlex

from app.engine_client.catalogue import Catalogue
from app.routes.openapi import predict_examples
from app.settings import Settings


def banner(settings: Settings, port: int, catalogue: Catalogue) -> str:
    """Where the server listens and what it serves, with a ``curl`` command that predicts with its first model.

    Args:
        port: that it listens on.
    """
    if not catalogue.names:
        return f"No model in {settings.model_store} could be loaded."
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{port}"
    model = catalogue.find(catalogue.default or catalogue.names[0])
    path = "/predict" if catalogue.default else f"/models/{model.model}/predict"
    lines = [f"Serving {', '.join(catalogue.names)} on {url}; open it in a browser, or read {url}/docs."]
    example = next(iter(predict_examples(model, settings.model_store).values()), None)
    if example is not None:
        body = json.dumps(example["value"], separators=(",", ":"))
        lines.append(f"Try: curl {url}{path} -H 'content-type: application/json' -d {shlex.quote(body)}")
    return "\n".join(lines)
