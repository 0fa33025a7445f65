"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const slices = data.slices;
const canvas = get("picture");
const loaded = new Map();
let at = 0;

const say = (id, text) => { get(id).textContent = text; get(id).hidden = !text; };
say("question", data.question);
say("status", data.outcome);
say("answer", data.answer);
say("note", data.note);
say("reason", data.reason);
say("plot-text", `${data.ml.toFixed(1)} mL. The height of a bar is the mask's area in its slice, up to ${data.largest.toFixed(0)} mm²; green bars were clicked.`);
for (const [term, value] of data.facts) {
  const dt = document.createElement("dt"), dd = document.createElement("dd");
  dt.textContent = term; dd.textContent = value;
  get("facts").append(dt, dd);
}

function pictureOf(n) {
  if (!loaded.has(n)) {
    const image = new Image();
    image.onload = () => { if (n === at) draw(); };
    image.src = "data:image/png;base64," + slices[n].png;
    loaded.set(n, image);
  }
  return loaded.get(n);
}

function draw() {
  const one = slices[at], image = pictureOf(at);
  canvas.width = one.width; canvas.height = one.height;
  canvas.style.aspectRatio = `${one.width * one.col_mm} / ${one.height * one.row_mm}`;
  if (!image.complete || !image.naturalWidth) return;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  if (get("show-mask").checked) {
    const pixels = context.getImageData(0, 0, one.width, one.height), colours = pixels.data;
    let place = 0;
    for (let n = 0; n < one.runs.length; n++) {
      if (n % 2) for (let p = place; p < place + one.runs[n]; p++) {
        colours[4 * p] = 0.6 * colours[4 * p] + 0.4 * 40;
        colours[4 * p + 1] = 0.6 * colours[4 * p + 1] + 0.4 * 215;
        colours[4 * p + 2] = 0.6 * colours[4 * p + 2] + 0.4 * 230;
      }
      place += one.runs[n];
    }
    context.putImageData(pixels, 0, 0);
    for (const click of one.clicks) {
      context.strokeStyle = click.positive ? "#11c35f" : "#ff5a5f";
      context.lineWidth = Math.max(1, one.width / 200);
      context.beginPath();
      context.arc(click.x * one.width, click.y * one.height, one.width / 60, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

function show(n) {
  at = Math.max(0, Math.min(slices.length - 1, n));
  const one = slices[at];
  get("slice").value = String(at);
  get("position").textContent = `${one.slice}: ${one.area.toFixed(0)} mm²` + (one.score === null ? "" : `, score ${one.score.toFixed(2)}`);
  here.setAttribute("x", String(at * 600 / slices.length));
  for (const button of get("actions").querySelectorAll("button")) {
    button.setAttribute("aria-current", String(Number(button.dataset.slice) === one.slice));
  }
  draw();
}

const svg = "http://www.w3.org/2000/svg";
const wide = 600 / slices.length;
slices.forEach((one, n) => {
  const bar = document.createElementNS(svg, "rect"), high = 116 * one.area / Math.max(1, data.largest);
  bar.setAttribute("x", String(n * wide)); bar.setAttribute("width", String(Math.max(0.5, wide * 0.9)));
  bar.setAttribute("y", String(120 - high)); bar.setAttribute("height", String(high));
  bar.setAttribute("class", one.anchor ? "bar anchor" : "bar");
  get("plot").append(bar);
});
const here = document.createElementNS(svg, "rect");
here.setAttribute("class", "here"); here.setAttribute("y", "0"); here.setAttribute("height", "120");
here.setAttribute("width", String(wide));
get("plot").append(here);
get("plot").addEventListener("click", (event) => {
  const box = get("plot").getBoundingClientRect();
  show(Math.floor((event.clientX - box.left) / box.width * slices.length));
});

for (const action of data.actions) {
  const item = document.createElement("li"), button = document.createElement("button"), more = document.createElement("small");
  button.type = "button";
  button.dataset.slice = String(action.slice);
  button.textContent = `${action.number}. slice ${action.slice}: ${action.words}`;
  more.textContent = [action.by, action.thinking].filter(Boolean).join(" · ");
  button.append(more);
  button.addEventListener("click", () => show(slices.findIndex((one) => one.slice === action.slice)));
  item.append(button);
  get("actions").append(item);
}
get("slice").min = "0"; get("slice").max = String(slices.length - 1); get("slice").step = "1";
get("slice").addEventListener("input", () => show(Number(get("slice").value)));
get("show-mask").addEventListener("change", draw);
document.addEventListener("keydown", (event) => {
  if (event.target instanceof HTMLInputElement) return;
  if (event.key === "ArrowRight") show(at + 1);
  if (event.key === "ArrowLeft") show(at - 1);
});
show(Math.max(0, slices.findIndex((one) => one.slice === data.key)));
