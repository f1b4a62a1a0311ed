"""The banner: what a person reads when the server is ready."""

import json
import shlex

from app.engine_client.catalogue import Catalogue
from app.routes.examples import predict_examples
from app.settings import Settings


def banner(settings: Settings, port: int, catalogue: Catalogue) -> str:
    """Say where the server listens and what it serves, with a ``curl`` line for its first model.

    Args:
        settings: of the server.
        port: that it listens on.
        catalogue: what it serves; if that is nothing, the banner says so.
    """
    if not catalogue.names:
        return f"No model in {settings.model_store} could be loaded."
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else settings.host}:{port}"
    model = catalogue.find(catalogue.default or catalogue.names[0])
    lines = [f"Serving {', '.join(catalogue.names)} on {url}; open it in a browser, or read {url}/docs."]
    if example := next(iter(predict_examples(model, settings.model_store).values()), None):
        body = json.dumps(example["value"], separators=(",", ":"))
        path = f"/models/{model.model}/predict"
        lines.append(f"Try: curl {url}{path} -H 'content-type: application/json' -d {shlex.quote(body)}")
    return "\n".join(lines)
