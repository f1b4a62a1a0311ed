// Pad: a canvas for drawings, dropped images and samples, which converts its content to a model's input.

const SIDE = 336; // of the paper, in pixels
const PEN = SIDE / 11;
const BLOCK = 8; // pixels of the paper, per side, averaged into one pixel of the input
const STEP = SIDE / 24; // of one arrow key, in pixels

export class Pad extends EventTarget {
  #view;
  #paper = sheet(SIDE, SIDE);
  #ink = this.#paper.getContext("2d", { willReadFrequently: true });
  #spec = null; // of the model's input
  #sample = null; // shown instead of the paper, or null
  #isInk = true; // whether the paper holds a drawing, not an image
  #filled = 0; // share of the side that the samples' ink takes; drawings are scaled to it
  #last = null;
  #isEmpty = true;
  #pen = { x: SIDE / 2, y: SIDE / 2, isDown: false, isShown: false };

  // view: the canvas element. Dispatches "change".
  constructor(view) {
    super();
    this.#view = view;
    view.width = view.height = SIDE;
    view.addEventListener("pointerdown", (event) => this.#begin(event));
    view.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => (this.#last = null));
    view.addEventListener("keydown", (event) => this.#press(event));
    view.addEventListener("blur", () => {
      this.#pen.isShown = this.#pen.isDown = false;
      this.#show();
    });
    this.clear();
  }

  get isEmpty() {
    return this.#isEmpty;
  }

  // spec: input spec of a model of images; samples: raw inputs of that model.
  prepare(spec, samples) {
    this.#spec = spec;
    this.#filled = spec.shape[0] === 1 ? filledShare(spec, samples) : 0;
    this.clear();
  }

  clear() {
    const pen = this.#ink;
    pen.fillStyle = "black";
    pen.fillRect(0, 0, SIDE, SIDE);
    this.#sample = null;
    this.#isInk = this.#isEmpty = true;
    this.#changed();
  }

  // input: nested raw numbers, [channels][height][width].
  showSample(input) {
    this.clear();
    this.#sample = input;
    this.#isEmpty = false;
    this.#changed();
  }

  async showPicture(file) {
    const picture = await createImageBitmap(file);
    this.clear();
    const scale = SIDE / Math.min(picture.width, picture.height); // it covers the paper; the longer side is cropped
    const [width, height] = [picture.width * scale, picture.height * scale];
    const pen = this.#ink;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
    this.#isInk = this.#isEmpty = false;
    this.#changed();
  }

  // Swap dark and light, for example for a dark digit on white paper.
  invert() {
    if (this.#sample) {
      const { low, high } = this.#spec;
      this.#sample = this.#sample.map((plane) => plane.map((line) => line.map((entry) => low + high - entry)));
    } else {
      const pen = this.#ink;
      pen.globalCompositeOperation = "difference";
      pen.fillStyle = "white";
      pen.fillRect(0, 0, SIDE, SIDE);
      pen.globalCompositeOperation = "source-over";
      this.#isInk = this.#isEmpty = false;
    }
    this.#changed();
  }

  // The model's input: nested raw numbers, [channels][height][width].
  input() {
    if (this.#sample) return this.#sample;
    const { shape, low, high, dtype } = this.#spec;
    const [channels, height, width] = shape;
    const fine = sheet(width * BLOCK, height * BLOCK);
    const pen = fine.getContext("2d", { willReadFrequently: true });
    pen.fillStyle = "black";
    pen.fillRect(0, 0, fine.width, fine.height);
    pen.imageSmoothingQuality = "high";
    const box = this.#isInk && this.#filled ? inkBox(this.#ink) : null;
    if (box) {
      const scale = (this.#filled * Math.min(fine.width, fine.height)) / Math.max(box.width, box.height);
      const [w, h] = [box.width * scale, box.height * scale];
      pen.drawImage(this.#paper, box.x, box.y, box.width, box.height, (fine.width - w) / 2, (fine.height - h) / 2, w, h);
    } else {
      pen.drawImage(this.#paper, 0, 0, fine.width, fine.height);
    }
    const { data } = pen.getImageData(0, 0, fine.width, fine.height);
    const value = (channel, row, column) => {
      let sum = 0;
      for (let y = row * BLOCK; y < (row + 1) * BLOCK; y++)
        for (let x = column * BLOCK; x < (column + 1) * BLOCK; x++) {
          const at = 4 * (y * fine.width + x);
          sum += channels === 1 ? 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2] : data[at + channel];
        }
      const scaled = low + ((high - low) * sum) / (255 * BLOCK * BLOCK);
      return Math.min(high, dtype === "uint8" ? Math.round(scaled) : Number(scaled.toPrecision(6)));
    };
    return range(channels).map((c) => range(height).map((y) => range(width).map((x) => value(c, y, x))));
  }

  #begin(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.#view.focus({ preventScroll: true });
    this.#view.setPointerCapture(event.pointerId);
    this.#pen.isShown = false;
    this.#line(this.#place(event));
  }

  #move(event) {
    if (this.#last === null) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) this.#line(this.#place(one));
  }

  #place(event) {
    const box = this.#view.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * SIDE, y: ((event.clientY - box.top) / box.height) * SIDE };
  }

  #line(to) {
    if (!this.#isInk || this.#sample) this.clear();
    const from = this.#last ?? to;
    const pen = this.#ink;
    pen.strokeStyle = "white";
    pen.lineWidth = PEN;
    pen.lineCap = pen.lineJoin = "round";
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    this.#last = to;
    this.#isEmpty = false;
    this.#changed();
  }

  #press(event) {
    const directions = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const pen = this.#pen;
    if (event.key in directions) {
      const [dx, dy] = directions[event.key];
      const from = { x: pen.x, y: pen.y };
      pen.x = Math.min(SIDE, Math.max(0, pen.x + dx * STEP));
      pen.y = Math.min(SIDE, Math.max(0, pen.y + dy * STEP));
      if (pen.isDown) this.#draw(from);
    } else if (event.key === " ") {
      pen.isDown = !pen.isDown;
      if (pen.isDown) this.#draw(pen);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else return;
    event.preventDefault();
    pen.isShown = true;
    this.#show();
  }

  #draw(from) {
    this.#last = { x: from.x, y: from.y };
    this.#line({ x: this.#pen.x, y: this.#pen.y });
    this.#last = null;
  }

  #changed() {
    this.#show();
    if (this.#spec) this.dispatchEvent(new Event("change"));
  }

  #show() {
    const view = this.#view.getContext("2d");
    view.imageSmoothingEnabled = false;
    view.drawImage(this.#sample ? picture(this.#sample, this.#spec) : this.#paper, 0, 0, SIDE, SIDE);
    if (!this.#pen.isShown) return;
    view.strokeStyle = "#f0a63a";
    view.lineWidth = this.#pen.isDown ? 5 : 2;
    view.beginPath();
    view.arc(this.#pen.x, this.#pen.y, PEN / 2, 0, 2 * Math.PI);
    view.stroke();
  }
}

// Draw a raw input on a canvas of its size.
export function picture(input, { shape, low, high }) {
  const [channels, height, width] = shape;
  const canvas = sheet(width, height);
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++)
        image.data[at + c] = (255 * (input[channels === 1 ? 0 : c][y][x] - low)) / (high - low);
      image.data[at + 3] = 255;
    }
  pen.putImageData(image, 0, 0);
  return canvas;
}

function sheet(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

const range = (n) => Array.from({ length: n }, (_, k) => k);

function inkBox(paper) {
  const { data } = paper.getImageData(0, 0, SIDE, SIDE);
  return boxOf(SIDE, SIDE, (x, y) => data[4 * (y * SIDE + x)] > 64);
}

function boxOf(width, height, isInk) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      if (isInk(x, y)) {
        [left, right] = [Math.min(left, x), Math.max(right, x)];
        [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
      }
  return right < 0 ? null : { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
}

// Data sets of drawings scale the ink to one size, so the pad does too; the samples show which size.
function filledShare({ shape, low, high }, samples) {
  const [, height, width] = shape;
  const shares = samples.flatMap(([plane]) => {
    const box = boxOf(width, height, (x, y) => plane[y][x] > low + 0.15 * (high - low));
    return box ? [Math.max(box.width / width, box.height / height)] : [];
  });
  return shares.length ? shares.reduce((sum, share) => sum + share, 0) / shares.length : 0;
}
