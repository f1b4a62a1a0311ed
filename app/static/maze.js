// Mazes with coloured exits, as training/data/mazes.py makes them: which exit is the source connected to?

export const COLOURS = ["red", "green", "blue", "yellow"];
export const MIN_SIZE = 3; // cells per side
const [WALL, FLOOR, SOURCE, FIRST_EXIT] = [0, 1, 2, 3];
const PALETTE = ["#000000", "#ffffff", "#ff00ff", "#ff0000", "#00ff00", "#0000ff", "#ffff00"]; // as in training
const RGB = PALETTE.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
const DIFFICULTY = { easy: 0.25, medium: 0.5, hard: 1 }; // the length of the path, as a share of the longest in the maze

// A maze: { side, pixels }, pixels holding places in the palette, row by row; cells are where row and column are even.

// The maze that an input of a model shows; null if it shows anything else.
export function read(input) {
  const side = input[0]?.length;
  if (input.length !== 3 || side % 2 !== 1 || input[0][0].length !== side) return null;
  const pixels = Array.from({ length: side * side }, (_, place) => {
    const [row, column] = [Math.floor(place / side), place % side];
    return RGB.findIndex((colour) => colour.every((value, channel) => value === input[channel][row][column]));
  });
  const once = [SOURCE, ...COLOURS.map((_, k) => FIRST_EXIT + k)];
  const isOne = !pixels.includes(-1) && once.every((kind) => pixels.filter((one) => one === kind).length === 1);
  return isOne ? { side, pixels } : null;
}

// The raw input of a model, [channels][height][width].
export function inputOf({ side, pixels }) {
  const range = Array.from({ length: side }, (_, k) => k);
  return [0, 1, 2].map((channel) => range.map((row) => range.map((column) => RGB[pixels[row * side + column]][channel])));
}

// The colour of each pixel, null for the floor.
export const landmarks = ({ pixels }) => pixels.map((one) => (one === FLOOR ? null : PALETTE[one]));

// A random maze of size × size cells, with walls around it where there is room for more. Kruskal's algorithm over shuffled edges
// refuses loops, and unions of two trees that both hold an exit: so every cell is connected to exactly one exit.
export function generate(side, size, difficulty) {
  const pixels = Array(side * side).fill(WALL);
  const margin = 2 * Math.floor(((side + 1) / 2 - size) / 2);
  const indices = Array.from({ length: size * size }, (_, k) => k);
  const placeOf = (k) => (margin + 2 * Math.floor(k / size)) * side + margin + 2 * (k % size);
  const right = indices.filter((k) => k % size < size - 1).map((k) => [placeOf(k), 1]);
  const down = indices.filter((k) => k < size * (size - 1)).map((k) => [placeOf(k), side]);
  const cells = shuffled(indices.map(placeOf));
  const exits = cells.slice(0, COLOURS.length);
  const parent = new Map(cells.map((cell) => [cell, cell]));
  const root = (cell) => (parent.get(cell) === cell ? cell : root(parent.get(cell)));
  const holdsExit = new Set(exits); // roots
  for (const cell of cells) pixels[cell] = FLOOR;
  for (const [cell, step] of shuffled([...right, ...down])) {
    const [kept, gone] = [root(cell), root(cell + 2 * step)];
    if (kept === gone || (holdsExit.has(kept) && holdsExit.has(gone))) continue;
    parent.set(gone, kept);
    if (holdsExit.has(gone)) holdsExit.add(kept);
    pixels[cell + step] = FLOOR;
  }
  exits.forEach((exit, k) => (pixels[exit] = FIRST_EXIT + k));
  const distances = flood({ side, pixels }, exits);
  const wanted = DIFFICULTY[difficulty] * Math.max(...cells.map((cell) => distances[cell]));
  const off = (cell) => Math.abs(distances[cell] - wanted);
  const source = cells.slice(COLOURS.length).reduce((best, cell) => (off(cell) < off(best) ? cell : best));
  pixels[source] = SOURCE;
  return { side, pixels };
}

// The exits that the source is connected to, the nearest first, each { colour, steps }.
export function reachableExits(maze) {
  const distances = flood(maze, [maze.pixels.indexOf(SOURCE)]);
  const exits = COLOURS.map((colour, k) => ({ colour, steps: distances[maze.pixels.indexOf(FIRST_EXIT + k)] }));
  return exits.filter(({ steps }) => steps >= 0).sort((a, b) => a.steps - b.steps);
}

// Steps from the nearest of some places to each pixel; -1 where there is no way.
function flood({ side, pixels }, starts) {
  const distances = Array(pixels.length).fill(-1);
  for (const start of starts) distances[start] = 0;
  const reached = [...starts];
  for (const place of reached) {
    const column = place % side;
    const near = [place - side, place + side, ...(column ? [place - 1] : []), ...(column < side - 1 ? [place + 1] : [])];
    for (const next of near)
      if (distances[next] === -1 && pixels[next] !== WALL) {
        distances[next] = distances[place] + 1;
        reached.push(next);
      }
  }
  return distances;
}

function shuffled(values) {
  const found = [...values];
  for (let k = found.length - 1; k > 0; k--) {
    const other = Math.floor(Math.random() * (k + 1));
    [found[k], found[other]] = [found[other], found[k]];
  }
  return found;
}

// A canvas on which a maze is edited: a wall between two cells is opened or closed, a cell becomes the source. Dispatches "change".
export class MazeEditor extends EventTarget {
  #view;
  #maze = null;
  #paints = null; // what the pointer writes while it is down: WALL, FLOOR or SOURCE
  #cursor = { row: 0, column: 0, isShown: false };

  constructor(view) {
    super();
    this.#view = view;
    view.addEventListener("pointerdown", (event) => this.#begin(event));
    view.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => (this.#paints = null));
    view.addEventListener("keydown", (event) => this.#press(event));
    view.addEventListener("blur", () => {
      this.#cursor.isShown = false;
      this.#show();
    });
  }

  get maze() {
    return this.#maze;
  }

  set maze(maze) {
    this.#maze = { side: maze.side, pixels: [...maze.pixels] };
    this.#cursor = { ...this.#cursor, row: 0, column: 0 };
    this.#changed();
  }

  #begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.#view.focus({ preventScroll: true });
    this.#view.setPointerCapture(event.pointerId);
    this.#cursor.isShown = false;
    const place = this.#place(event);
    this.#paints = this.#toggled(place);
    this.#paint(place);
  }

  #move(event) {
    for (const one of event.getCoalescedEvents?.() ?? [event]) this.#paint(this.#place(one));
  }

  #place(event) {
    const box = this.#view.getBoundingClientRect();
    const { side } = this.#maze;
    const at = (share) => Math.min(side - 1, Math.max(0, Math.floor(share * side)));
    return at((event.clientY - box.top) / box.height) * side + at((event.clientX - box.left) / box.width);
  }

  // What a click on a place makes of it; null where nothing can be changed.
  #toggled(place) {
    const { side, pixels } = this.#maze;
    const odd = (Math.floor(place / side) % 2) + ((place % side) % 2);
    if (odd === 0) return SOURCE;
    return odd === 1 ? (pixels[place] === WALL ? FLOOR : WALL) : null;
  }

  #paint(place) {
    if (this.#paints === null) return;
    const { pixels } = this.#maze;
    const isCell = this.#toggled(place) === SOURCE;
    const becomesSource = this.#paints === SOURCE && isCell && pixels[place] === FLOOR;
    const becomesOther = this.#paints !== SOURCE && !isCell && this.#toggled(place) === this.#paints;
    if (!becomesSource && !becomesOther) return;
    if (becomesSource) pixels[pixels.indexOf(SOURCE)] = FLOOR;
    pixels[place] = this.#paints;
    this.#changed();
  }

  #press(event) {
    const directions = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const cursor = this.#cursor;
    const { side } = this.#maze;
    if (event.key in directions) {
      const [down, right] = directions[event.key];
      cursor.row = Math.min(side - 1, Math.max(0, cursor.row + down));
      cursor.column = Math.min(side - 1, Math.max(0, cursor.column + right));
    } else if (event.key === " ") {
      const place = cursor.row * side + cursor.column;
      this.#paints = this.#toggled(place);
      this.#paint(place);
      this.#paints = null;
    } else return;
    event.preventDefault();
    cursor.isShown = true;
    this.#show();
  }

  #changed() {
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  #show() {
    if (!this.#maze) return;
    const { side, pixels } = this.#maze;
    const scale = Math.max(8, Math.floor(336 / side));
    this.#view.width = this.#view.height = side * scale;
    const pen = this.#view.getContext("2d");
    pixels.forEach((kind, place) => {
      pen.fillStyle = PALETTE[kind];
      pen.fillRect((place % side) * scale, Math.floor(place / side) * scale, scale, scale);
    });
    if (!this.#cursor.isShown) return;
    pen.strokeStyle = "#f0a63a";
    pen.lineWidth = 4;
    pen.strokeRect(this.#cursor.column * scale + 2, this.#cursor.row * scale + 2, scale - 4, scale - 4);
  }
}
