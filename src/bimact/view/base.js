"use strict";
// What all parts of the page share: answers of the server, elements, numbers.

// In an exported page what the server would answer, by path; null where there is a server.
const EMBEDDED = JSON.parse(document.getElementById("embedded").textContent);

/** The element with this id. */
function at(id) {
  return document.getElementById(id);
}

/** A new element; text from the dataset goes in as text and never as markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** What the server answers; null if an exported page does not have it. Throws with a sentence. */
async function load(path) {
  if (EMBEDDED) return EMBEDDED[path] ?? null;
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error("The server does not answer: is `bimact view` still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

/** Where a camera's video of an episode is. */
function videoAddress(episode, camera) {
  const path = `video/${episode}/${encodeURIComponent(camera)}.mp4`;
  if (!EMBEDDED) return path;
  return URL.createObjectURL(new Blob([bytesOf(EMBEDDED[path])], { type: "video/mp4" }));
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/** base64 of float32 → one array of numbers a dimension, null where there is none (NaN, infinite). */
function dimensionsOf(base64, count) {
  const numbers = new Float32Array(bytesOf(base64).buffer);
  const length = count ? numbers.length / count : 0;
  return Array.from({ length: count }, (_, dimension) =>
    Array.from(numbers.subarray(dimension * length, (dimension + 1) * length), (value) =>
      Number.isFinite(value) ? value : null,
    ),
  );
}

/** A function that writes numbers of some spread with as many decimals as tell them apart. */
function numberFormat(spread) {
  if (!(spread > 0)) return (value) => (value === null ? "none" : String(Number(value.toPrecision(4))));
  const decimals = 2 - Math.floor(Math.log10(spread));
  return (value) => {
    if (value === null) return "none";
    if (decimals > 7 || decimals < -6) return value.toExponential(2);
    const text = value.toFixed(Math.max(0, decimals));
    return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
  };
}

function count(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")} h`;
}

/** A colour of the page's style, which may change between light and dark. */
function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Press one of some buttons that exclude each other. */
function press(chosen, ...others) {
  for (const button of others) button.setAttribute("aria-pressed", "false");
  chosen.setAttribute("aria-pressed", "true");
}
