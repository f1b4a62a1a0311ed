// CSV: tables as texts that other programs read.

// rows: lists of cells, the names of the columns first.
export function writeCsv(rows) {
  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell);
  return rows.map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

// The rows of a table as objects by the names of its columns; all cells are texts.
export function readCsv(text) {
  const rows = [[]];
  for (const [, separator, quoted, plain] of text.trim().matchAll(/(^|,|\r?\n)(?:"((?:[^"]|"")*)"|([^",\r\n]*))/g)) {
    if (separator.endsWith("\n")) rows.push([]);
    rows.at(-1).push(quoted?.replaceAll('""', '"') ?? plain);
  }
  const [names, ...lines] = rows;
  return lines.map((cells) => Object.fromEntries(names.map((name, k) => [name, cells[k]])));
}
