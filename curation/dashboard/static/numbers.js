// How numbers are written: as the report writes them, and thresholds exactly.

/** The shortest text that is read back as this number, by JSON and by YAML (which wants a point before an exponent). */
export const exact = (number) => String(number).replace(/^(-?\d+)e/, "$1.0e");

/** A score or a threshold to look at. digits: significant ones. */
export const short = (number, digits = 4) =>
  Number.isInteger(number) && Math.abs(number) < 1e15
    ? number.toLocaleString("en")
    : String(Number(number.toPrecision(digits))).replace("-", "−");

/** A count in a few characters. */
export function brief(count) {
  const [size, letter] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => count >= size) ?? [1, ""];
  return `${Number((count / size).toPrecision(3))}${letter}`;
}

/** One decimal; a tie goes to the even digit, as in the report's numbers (only x.25 and x.75 are exact ties). */
const decimal = (number) => (Number.isInteger(number * 4) && (number * 4) % 4 === 1 ? number - 0.05 : number).toFixed(1);

/** "31.2 %" where both shares are written alike, else "28.0 to 31.2 %". */
export const percent = (low, high = low) => `${span(low, high, (share) => decimal(share * 100))} %`;

/** Points between shares and a goal: "+1.2 points". */
export const points = (low, high, goal) => `${span(low, high, (share) => signed((share - goal) * 100, decimal))} points`;

/** "1,234" or "1,200 to 1,234". */
export const counts = (low, high = low) => span(low, high, (number) => number.toLocaleString("en"));

/** "+12" or "−5 to +12". */
export const changes = (low, high) => span(low, high, (number) => signed(number, (size) => size.toLocaleString("en")));

function span(low, high, write) {
  const [from, to] = [write(low), write(high)];
  return from === to ? from : `${from} to ${to}`;
}

function signed(number, write) {
  const text = write(Math.abs(number));
  return `${/[1-9]/.test(text) ? (number < 0 ? "−" : "+") : ""}${text}`;
}
