"use strict";

// Shows where the decoder looked while it chose a word. Each card carries its grid and its weights (T x R bytes,
// each word's strongest region at 255), and the word the region that it looked at alone, if it did, or how many
// hundredths of it come from looking, if not all do; pipeline/report/attention.py draws the same on paper.

const light = document.querySelector("main").dataset;
const [shade, glow] = [light.shade, light.glow].map((colour) => colour.split(" ").map(Number));
const [depth, tint, around] = [light.depth, light.tint, light.around].map(Number);

// Cubic B-spline weights of `cells` values at each of `size` pixels: [first cell, four weights].
function spline(size, cells) {
  return Array.from({ length: size }, (_, pixel) => {
    const place = ((pixel + 0.5) * cells) / size - 0.5;
    const first = Math.floor(place);
    const t = place - first;
    const taps = [(1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3];
    return taps.map((tap, offset) => [Math.min(Math.max(first - 1 + offset, 0), cells - 1), tap / 6]);
  });
}

// The attention of one word as a smooth map of width x height, strongest at 1.
function attentionMap(weights, [rows, columns], width, height) {
  const across = spline(width, columns);
  const lines = Array.from({ length: rows }, (_, row) =>
    across.map((taps) => taps.reduce((sum, [cell, tap]) => sum + tap * weights[row * columns + cell], 0)));
  const map = new Float32Array(width * height);
  spline(height, rows).forEach((taps, y) => {
    for (let x = 0; x < width; x++) {
      map[y * width + x] = taps.reduce((sum, [cell, tap]) => sum + tap * lines[cell][x], 0);
    }
  });
  const strongest = map.reduce((most, value) => Math.max(most, value), 0);
  return strongest > 0 ? map.map((value) => value / strongest) : map;
}

// The shade, then the glow over it, as one colour with one opacity.
function cover(strength) {
  const over = tint * strength ** 2;
  const under = depth * (1 - strength) * (1 - over);
  const opacity = under + over;
  return [...shade.map((dark, channel) => (dark * under + glow[channel] * over) / (opacity || 1)), 255 * opacity];
}

// How far each pixel lies within a cell and the margin around it, as far as the picture goes; below 0 outside.
function inward(place, cells, pixels, margin) {
  const [first, last] = [place, place + 1].map((edge) => Math.floor((2 * edge * pixels + cells) / (2 * cells)));
  const [start, end] = [Math.max(0, first - margin), Math.min(pixels, last + margin)];
  return Array.from({ length: pixels }, (_, here) => Math.min(here - start, end - 1 - here));
}

// A frame around one region: a line of glow, a thin one of shade within, shade around it.
function frame(region, [rows, columns], width, height) {
  const line = Math.max(2, Math.floor((Math.max(width, height) + 60) / 120));
  const across = inward(region % columns, columns, width, line + 1);
  const down = inward(Math.floor(region / columns), rows, height, line + 1);
  const part = (depth) => depth < 0 ? [...shade, 255 * around]
    : depth < line ? [...glow, 255] : depth === line ? [...shade, 255] : [0, 0, 0, 0];
  return down.flatMap((deep) => across.map((far) => part(Math.min(deep, far))));
}

function paint(canvas, covers) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  covers.forEach((colour, pixel) => picture.data.set(colour, 4 * pixel));
  context.putImageData(picture, 0, 0);
}

function prepare(card) {
  const words = [...card.querySelectorAll(".word")];
  const canvas = card.querySelector("canvas");
  const reading = card.querySelector(".reading");
  const grid = card.dataset.grid.split(" ").map(Number);
  const regions = grid[0] * grid[1];
  const weights = Uint8Array.from(atob(card.dataset.weights), (letter) => letter.charCodeAt(0));
  let kept = null;

  function show(word) {
    words.forEach((other) => other.classList.toggle("shown", other === word));
    card.classList.toggle("looking", word !== null);
    if (word === null) {
      delete card.dataset.word;
      reading.textContent = "";
      return;
    }
    const index = words.indexOf(word);
    if (card.dataset.word === String(index + 1)) return;
    card.dataset.word = index + 1;
    const size = [canvas.width, canvas.height];
    const alone = word.dataset.region;
    if (alone !== undefined) {
      paint(canvas, frame(Number(alone), grid, ...size));
      const [row, column] = [Math.floor(alone / grid[1]), alone % grid[1]];
      reading.classList.toggle("high", 2 * row >= grid[0]); // never over the frame
      reading.textContent = `${word.textContent}: row ${row + 1} of ${grid[0]}, column ${column + 1} of ${grid[1]} alone`;
      return;
    }
    const row = weights.subarray(index * regions, (index + 1) * regions);
    const looked = word.dataset.looked ?? 100;
    paint(canvas, Array.from(attentionMap(row, grid, ...size), (strength) => cover((looked / 100) * strength)));
    reading.classList.remove("high");
    reading.textContent = `${word.textContent}: peak ${word.dataset.peak} × the mean`
      + (looked < 100 ? `, ${looked} % from looking` : "");
  }

  function keep(word) {
    kept = word;
    words.forEach((other) => other.setAttribute("aria-pressed", String(other === word)));
    show(word);
  }

  // Whatever is pointed at, else whatever has the focus, else whatever was kept.
  const focused = () => words.find((word) => word === document.activeElement && word.matches(":focus-visible"));
  const settle = () => show(focused() ?? kept);

  words.forEach((word, index) => {
    word.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(word); });
    word.addEventListener("focus", () => {
      words.forEach((other) => { other.tabIndex = other === word ? 0 : -1; }); // one stop a caption for the tab key
      show(word);
    });
    word.addEventListener("blur", () => show(kept));
    word.addEventListener("click", () => keep(kept === word ? null : word));
    word.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: words.length - 1 };
      if (event.key === "Escape") keep(null);
      if (!(event.key in steps)) return;
      event.preventDefault();
      words[Math.min(Math.max(steps[event.key], 0), words.length - 1)].focus();
    });
  });
  card.querySelector(".words")?.addEventListener("pointerleave", settle);
  card.addEventListener("keep", (event) => keep(event.detail));
}

// #caption-3-word-2 shows that word, so that an observation can be linked to.
function follow() {
  const word = document.getElementById(location.hash.slice(1));
  if (!word?.matches(".word")) return;
  word.closest(".card").dispatchEvent(new CustomEvent("keep", { detail: word }));
  word.scrollIntoView({ block: "center" });
}

document.querySelectorAll(".card[data-grid]").forEach(prepare); // boxes have no grid to draw
window.addEventListener("hashchange", follow);
follow();
document.documentElement.dataset.ready = "true";
