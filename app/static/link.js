// A link to the playground that restores model, settings and input. The input is in the fragment, which browsers do not send.

// body: of the request, as the API takes it.
export function linkTo(model, { inputs, ...settings }) {
  const link = new URL(location.pathname, location.href);
  link.search = new URLSearchParams({ model, ...settings });
  link.hash = `input=${inputs.flat(Infinity).join(",")}`;
  return link.href;
}

// What the page's own address says: { model, tolerance, max_iterations, solver, stop, input }; undefined where it says nothing.
export function readLink() {
  const input = new URLSearchParams(location.hash.slice(1)).get("input");
  return { ...Object.fromEntries(new URLSearchParams(location.search)), input: input?.split(",").map(Number) };
}

// Numbers in a row as nested lists of a shape; null if they are not as many, or not all numbers.
export function nested(flat, shape) {
  const size = shape.reduce((a, b) => a * b, 1);
  if (flat.length !== size || !flat.every(Number.isFinite)) return null;
  const nest = (part, [, ...inner]) => {
    if (!inner.length) return part;
    const each = inner.reduce((a, b) => a * b, 1);
    return Array.from({ length: part.length / each }, (_, k) => nest(part.slice(k * each, (k + 1) * each), inner));
  };
  return nest(flat, shape);
}
