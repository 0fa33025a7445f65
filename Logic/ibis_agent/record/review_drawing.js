"use strict";
// Images, masks and marks as SVG, and formatting of numbers. review_page.js decides what is shown when.
// All text is set through textContent: the policy's text is never interpreted as markup.
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

const make = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  Object.assign(node, properties);
  node.append(...children);
  return node;
};
const draw = (tag, attributes = {}, ...children) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const source = (png) => `data:image/png;base64,${png}`;

// One drawing unit is the shorter side of a pixel, so that a pixel has its true shape.
const gridOf = ({ width, height, col_mm, row_mm }) => {
  const shorter = Math.min(col_mm, row_mm), ux = col_mm / shorter, uy = row_mm / shorter;
  return { W: width, H: height, ux, uy, shorter, width: width * ux, height: height * uy };
};

const decode = (runs, size) => {
  const mask = new Uint8Array(size);
  let at = 0;
  runs.forEach((length, index) => {
    if (index % 2) mask.fill(1, at, at + length);
    at += length;
  });
  return mask;
};

// The mask's pixel edges, chained into closed loops with the inside on the right (fill-rule evenodd).
const trace = ({ W, H, ux, uy }, inside) => {
  const stride = W + 1;
  const edges = new Uint8Array(stride * (H + 1));
  for (let y = 0; y < H; y++) {
    for (let x = 0; x < W; x++) {
      const p = y * W + x;
      if (!inside(p)) continue;
      const v = y * stride + x;
      if (y === 0 || !inside(p - W)) edges[v] |= 1;
      if (x === W - 1 || !inside(p + 1)) edges[v + 1] |= 2;
      if (y === H - 1 || !inside(p + W)) edges[v + stride + 1] |= 4;
      if (x === 0 || !inside(p - 1)) edges[v + stride] |= 8;
    }
  }
  const stepOf = [1, stride, -1, -stride];
  const point = (v) => `${+((v % stride) * ux).toFixed(3)} ${+(Math.floor(v / stride) * uy).toFixed(3)}`;
  const parts = [];
  for (let start = 0; start < edges.length; start++) {
    while (edges[start]) {
      let way = 0;
      while (!(edges[start] & (1 << way))) way++;
      let v = start;
      parts.push("M", point(v));
      for (;;) {
        edges[v] &= ~(1 << way);
        v += stepOf[way];
        if (v === start) break;
        // Where two corners meet, turn right: the two pixels stay separate, as 4-neighbours do.
        const turn = [1, 0, 3].find((t) => edges[v] & (1 << (way + t) % 4));
        if (turn) parts.push("L", point(v));
        way = (way + turn) % 4;
      }
      parts.push("Z");
    }
  }
  return parts.join(" ");
};

// Beside its mark, in the first free corner: two clicks at one place must not read "13".
const corners = [[12, -8, "start"], [-12, -8, "end"], [12, 19, "start"], [-12, 19, "end"], [0, -17, "middle"], [0, 29, "middle"]];
const placeLabel = (x, y, k, taken) => {
  const free = corners.find(([dx, dy]) => taken.every(([tx, ty]) => Math.hypot(x + dx * k - tx, y + dy * k - ty) > 17 * k));
  const [dx, dy, anchor] = free || corners[0];
  taken.push([x + dx * k, y + dy * k]);
  return { x: x + dx * k, y: y + dy * k, "text-anchor": anchor };
};

const pixelOf = ({ W, H }, { x, y }) => [Math.min(W - 1, Math.max(0, Math.trunc(x * W))), Math.min(H - 1, Math.max(0, Math.trunc(y * H)))];

// Marks of clicks, the last one in full; k is the size of a screen pixel in drawing units.
const marksOf = (grid, clicks, k) => {
  const taken = [];
  return clicks.map((click, index) => {
    const kind = click.positive ? "plus" : "minus", r = 9 * k;
    const [col, row] = pixelOf(grid, click);
    const x = (col + 0.5) * grid.ux, y = (row + 0.5) * grid.uy;
    const [left, top, right, bottom] = (click.box || []).map((edge, n) => edge * (n % 2 ? grid.H * grid.uy : grid.W * grid.ux));
    const shape = (name, stroke) => (click.box
      ? draw("rect", { class: name, x: left, y: top, width: right - left, height: bottom - top, fill: "none", "stroke-width": stroke * k })
      : kind === "plus"
      ? draw("circle", { class: name, cx: x, cy: y, r, "stroke-width": stroke * k })
      : draw("path", { class: name, "stroke-width": stroke * k,
        d: `M${x - r * .8} ${y - r * .8}L${x + r * .8} ${y + r * .8}M${x + r * .8} ${y - r * .8}L${x - r * .8} ${y + r * .8}` }));
    const label = draw("text", { ...placeLabel(x, y, k, taken), "font-size": 14 * k, "stroke-width": 3 * k });
    label.textContent = click.number;
    const title = draw("title");
    title.textContent = click.box ? `Box ${click.number}` : `Click ${click.number}, ${click.positive ? "included" : "excluded"}`;
    return draw("g", { class: `mark ${kind}${index === clicks.length - 1 ? "" : " earlier"}` }, title, shape("halo", 6), shape("shape", 3), label);
  });
};

const grouped = (number) => Math.round(number).toLocaleString("en-US").replace(/,/g, "\u202f");
const signed = (number) => (Math.round(number) === 0 ? "±0" : (number > 0 ? "+" : "−") + grouped(Math.abs(number)));
const seconds = (s) => (s < 9.95 ? s.toFixed(1) : Math.round(s)) + "\u00a0s";

const SHAPES = {
  plus: ["circle", { cx: 9, cy: 9, r: 6.5 }],
  minus: ["path", { d: "M3.5 3.5l11 11M14.5 3.5l-11 11" }],
  end: ["path", { d: "M3 9.5l4 4 8-9" }],
  start: ["path", { d: "M6.5 6.6a2.6 2.6 0 1 1 3.6 2.6c-.8.4-1.1.9-1.1 1.8M9 14.2v.1" }],
  look: ["path", { d: "M7.5 3a4.5 4.5 0 1 1 0 9a4.5 4.5 0 0 1 0-9zM11 11l4 4" }],
  grow: ["path", { d: "M9 2.5v13M5.5 6l3.5-3.5L12.5 6M5.5 12l3.5 3.5 3.5-3.5" }],
};
const icon = (kind) => draw("svg", { class: `icon ${kind}`, viewBox: "0 0 18 18", "aria-hidden": "true" }, draw(...SHAPES[kind]));

// Zoom and pan of a picture with buttons, wheel, mouse and fingers; `view` holds its centre and its zoom.
const watchZoom = ({ stage, svg, view, layOut, unitsPerScreenPixel, scroll }) => {
  const zoomBy = (factor, at) => {
    const zoom = Math.min(16, Math.max(1, view.zoom * factor));
    const p = at || { x: view.x, y: view.y };
    view.x = p.x + (view.x - p.x) * view.zoom / zoom;
    view.y = p.y + (view.y - p.y) * view.zoom / zoom;
    view.zoom = zoom;
    layOut();
  };
  const under = (event) => {
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return { x: p.x, y: p.y };
  };
  $("zoom-in").addEventListener("click", () => zoomBy(1.5));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
  $("zoom-fit").addEventListener("click", () => { view.zoom = 1; layOut(); });
  svg.addEventListener("dblclick", (event) => zoomBy(2, under(event)));
  // With Ctrl (also sent by a trackpad's pinch) the wheel zooms. Without Ctrl it moves through the slices of a
  // volume, and scrolls the page beyond the first and last one.
  let turned = 0;
  svg.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 250), under(event));
      return;
    }
    turned += event.deltaMode ? 40 * event.deltaY : event.deltaY;
    const by = -Math.trunc(turned / 40);
    turned %= 40;
    if (scroll(by)) event.preventDefault();
  }, { passive: false });
  const fingers = new Map();
  svg.addEventListener("pointerdown", (event) => {
    fingers.set(event.pointerId, event);
    if (view.zoom > 1 || fingers.size > 1) svg.setPointerCapture(event.pointerId);
    stage.classList.toggle("dragging", view.zoom > 1);
  });
  svg.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const others = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId);
    if (others.length === 1) {
      const span = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY) || 1;
      zoomBy(span(event) / span(before), under(event));
    } else if (view.zoom > 1) {
      const k = unitsPerScreenPixel();
      view.x -= (event.clientX - before.clientX) * k;
      view.y -= (event.clientY - before.clientY) * k;
      layOut();
    }
    fingers.set(event.pointerId, event);
  });
  const lift = (event) => { fingers.delete(event.pointerId); stage.classList.remove("dragging"); };
  svg.addEventListener("pointerup", lift);
  svg.addEventListener("pointercancel", lift);
};
