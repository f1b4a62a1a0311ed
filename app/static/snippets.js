// A request as a command or a program that sends it again; the key stays a name, so that it can be shared.

import { ROOT, hasKey } from "./server.js";

const urlOf = (model) => new URL(`models/${encodeURIComponent(model)}/predict`, ROOT).href;

// body: of the request, as the API takes it.
export const snippets = {
  curl(model, body) {
    const key = hasKey() ? ` \\\n  -H "authorization: Bearer $JFB_KEY"` : "";
    return `curl ${urlOf(model)} \\\n  -H 'content-type: application/json'${key} \\\n  -d '${JSON.stringify(body)}'\n`;
  },

  python(model, body) {
    const key = hasKey() ? `, "authorization": f"Bearer {os.environ['JFB_KEY']}"` : "";
    return `import json
${key && "import os\n"}import urllib.request

url = ${JSON.stringify(urlOf(model))}
headers = {"content-type": "application/json"${key}}
body = ${JSON.stringify(body)}
request = urllib.request.Request(url, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as response:
    print(json.dumps(json.load(response), indent=2))
`;
  },

  javascript(model, body) {
    const key = hasKey() ? ", authorization: `Bearer ${process.env.JFB_KEY}`" : "";
    return `const response = await fetch(${JSON.stringify(urlOf(model))}, {
  method: "POST",
  headers: { "content-type": "application/json"${key} },
  body: JSON.stringify(${JSON.stringify(body)}),
});
console.log(await response.json());
`;
  },
};
