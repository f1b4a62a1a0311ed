// The Markdown of model cards, as elements: headings, paragraphs, tables, images, lists and code. Never as HTML text.

import { element } from "./dom.js";

// image: called with the path and the description of each image; returns an element, or null to leave it out.
export function render(markdown, image) {
  const lines = markdown.replace(/^---\n[^]*?\n---\n/, "").split("\n");
  const made = [];
  while (lines.length) {
    const line = lines.shift();
    const heading = /^(#{1,6}) (.*)/.exec(line);
    const picture = /^!\[(.*)\]\((.*)\)$/.exec(line);
    if (!line.trim()) continue;
    if (line.startsWith("```")) {
      const end = lines.findIndex((one) => one.startsWith("```"));
      made.push(element("pre", "", lines.splice(0, end < 0 ? lines.length : end).join("\n")));
      lines.shift();
    } else if (heading) {
      made.push(withSpans(element(`h${Math.min(6, heading[1].length + 1)}`), heading[2]));
    } else if (picture) {
      const found = image(picture[2], picture[1]);
      if (found) made.push(found);
    } else if (line.startsWith("|")) {
      const title = made.findLast((one) => /^H\d$/.test(one.tagName))?.textContent ?? "";
      made.push(table([line, ...take(lines, (one) => one.startsWith("|"))], title));
    } else if (/^[-*] /.test(line)) {
      const list = element("ul");
      const items = [line, ...take(lines, (one) => /^[-*] /.test(one))];
      list.append(...items.map((one) => withSpans(element("li"), one.slice(2))));
      made.push(list);
    } else {
      const more = take(lines, (one) => one.trim() && !/^(#|\||```|!\[|[-*] )/.test(one));
      made.push(withSpans(element("p"), [line, ...more].join(" ")));
    }
  }
  return made;
}

// Remove the first lines that fit, and return them.
function take(lines, fits) {
  const end = lines.findIndex((one) => !fits(one));
  return lines.splice(0, end < 0 ? lines.length : end);
}

// title: of the section, which is the name of the region that scrolls.
function table(lines, title) {
  const rows = lines.filter((_, k) => k !== 1).map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
  const made = element("table");
  rows.forEach((cells, k) => {
    const row = element("tr");
    row.append(...cells.map((cell) => withSpans(element(k ? "td" : "th"), cell)));
    made.append(row);
  });
  const scroll = element("div", "scroll");
  scroll.tabIndex = 0;
  scroll.role = "region";
  scroll.ariaLabel = `Table: ${title}`;
  scroll.append(made);
  return scroll;
}

// Bold text, code and links that start with http; the rest is text.
function withSpans(parent, text) {
  for (const part of text.split(/(\*\*[^*]+\*\*|`[^`]+`|\[[^\]]+\]\(https?:[^)\s]+\))/)) {
    const link = /^\[(.+)\]\((.+)\)$/.exec(part);
    if (link) parent.append(Object.assign(element("a", "", link[1]), { href: link[2], rel: "noreferrer" }));
    else if (part.startsWith("**")) parent.append(element("strong", "", part.slice(2, -2)));
    else if (part.startsWith("`")) parent.append(element("code", "", part.slice(1, -1)));
    else parent.append(part);
  }
  return parent;
}
