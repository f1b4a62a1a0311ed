// Numbers as the pages show them.

// Two significant digits, in the notation that programs read: 6.7e-6.
export function shortNumber(value) {
  if (value === null) return "not finite";
  if (value === 0 || (value >= 0.01 && value < 1000)) return String(Number(value.toPrecision(2)));
  const [digits, power] = value.toExponential(1).split("e");
  return `${Number(digits)}e${Number(power)}`;
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;

export const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
export const compact = (value) => COMPACT.format(value);
