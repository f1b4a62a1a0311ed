// Heat maps of the state at each position, from the events of a request with trace: state (see IterationEvent in /docs).

const COLOURS = ["#22143d", "#5a1a6e", "#a0296c", "#dc5148", "#f7962b", "#fcf3b0"]; // of 0 to 1, evenly spaced
const LEAST = 3; // steps of the scale of 255 that a position has to move by to count as moving

// event: data of an event with a state; its magnitudes as numbers.
export function magnitudes({ shape, peak, magnitude }) {
  const values = Float32Array.from(atob(magnitude), (character) => (peak * character.charCodeAt(0)) / 255);
  return { shape, peak, values };
}

// Draw one of the states of a request. states: all of them, as magnitudes() makes them; by: "magnitude", on one scale for all
// positions, or "change", on which each position goes from its lowest to its highest; marks: colours of places that show no state.
export function drawHeat(canvas, states, index, by, marks) {
  const [height, width] = states[index].shape;
  const peak = states.reduce((highest, one) => Math.max(highest, one.peak), 0);
  const share = (place) => {
    const value = states[index].values[place];
    if (by === "magnitude") return peak ? value / peak : 0;
    const series = states.map((one) => one.values[place]);
    const [low, high] = [Math.min(...series), Math.max(...series)];
    return high - low < (LEAST * peak) / 255 ? 0 : (value - low) / (high - low);
  };
  [canvas.width, canvas.height] = [width, height];
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, height);
  for (let place = 0; place < width * height; place++) image.data.set([...colour(share(place)), 255], 4 * place);
  pen.putImageData(image, 0, 0);
  marks.forEach((mark, place) => {
    if (mark === null) return;
    pen.fillStyle = mark;
    pen.fillRect(place % width, Math.floor(place / width), 1, 1);
  });
}

export function clearHeat(canvas) {
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

function colour(share) {
  const at = share * (COLOURS.length - 1);
  const below = Math.min(COLOURS.length - 2, Math.floor(at));
  const [from, to] = [COLOURS[below], COLOURS[below + 1]].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
  return from.map((value, channel) => value + (at - below) * (to[channel] - value));
}
