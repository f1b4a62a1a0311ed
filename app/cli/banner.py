"""The first thing that a person sees: the server is ready, and a line to paste."""

import json
import shlex

from app.engine_client.catalogue import Catalogue
from app.routes.openapi import examples_for
from app.settings import Settings


def greeting(settings: Settings, catalogue: Catalogue) -> str:
    """Say where the server listens and what it serves, with a ``curl`` line that asks its first model.

    Nothing to paste is said where there is no model, or the system chose the port.
    """
    if not catalogue.names:
        return f"No model in {settings.model_store} could be loaded."
    if settings.port == 0:
        return f"Serving {', '.join(catalogue.names)}."
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{settings.port}"
    model = catalogue.find(catalogue.default or catalogue.names[0], None)
    path = "/predict" if catalogue.default else f"/models/{model.name}/predict"
    content = next(iter(examples_for(model, settings.model_store).values()), None)
    lines = [f"Serving {', '.join(catalogue.names)} on {url}; open it in a browser, or read {url}/docs."]
    if content is not None:
        body = json.dumps(content["value"], separators=(",", ":"))
        lines.append(f"Try: curl {url}{path} -H 'content-type: application/json' -d {shlex.quote(body)}")
    return "\n".join(lines)
