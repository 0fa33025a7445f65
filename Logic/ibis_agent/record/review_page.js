"use strict";
// Shows one run, step by step. All text reaches the page through textContent: what a policy wrote is never
// markup. Position 0 is the picture with the question; position n is the state after step n.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const run = JSON.parse(document.getElementById("data").textContent);
  const { picture, steps } = run;
  const W = picture.width, H = picture.height;
  // One drawing unit is the shorter side of a pixel, so that a pixel has its true shape.
  const shorter = Math.min(picture.col_mm, picture.row_mm);
  const ux = picture.col_mm / shorter, uy = picture.row_mm / shorter;
  const width = W * ux, height = H * uy;
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

  // ---- masks ------------------------------------------------------------------------------------------
  const empty = new Uint8Array(W * H);
  const decode = (runs) => {
    const mask = new Uint8Array(W * H);
    let at = 0;
    runs.forEach((length, index) => {
      if (index % 2) mask.fill(1, at, at + length);
      at += length;
    });
    return mask;
  };
  const masks = [empty, ...steps.map((step) => decode(step.runs))];

  // The mask's pixel edges, chained into closed loops with the inside on the right (fill-rule evenodd).
  const trace = (inside) => {
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
  const outlines = new Map();
  const remembered = (key, inside) => {
    if (!outlines.has(key)) outlines.set(key, trace(inside));
    return outlines.get(key);
  };
  const outlineOf = (n) => remembered(`m${n}`, (p) => masks[n][p]);
  const gainedBy = (n) => remembered(`g${n}`, (p) => masks[n][p] && !masks[n - 1][p]);
  const lostBy = (n) => remembered(`l${n}`, (p) => masks[n - 1][p] && !masks[n][p]);

  // ---- words ------------------------------------------------------------------------------------------
  const grouped = (number) => Math.round(number).toLocaleString("en-US").replace(/,/g, "\u202f");
  const unit = picture.real_mm ? "mm²" : "px";
  const measure = (number) => `${grouped(number)}\u00a0${unit}`;
  const areas = [0, ...steps.map((step) => step.area)];
  const signed = (number) => (Math.round(number) === 0 ? "±0" : (number > 0 ? "+" : "−") + grouped(Math.abs(number)));
  const seconds = (s) => (s < 9.95 ? s.toFixed(1) : Math.round(s)) + "\u00a0s";
  const kindOf = (step) => (step.kind === "click" ? (step.positive ? "plus" : "minus") : "end");
  const nameOf = (step) => ({ plus: "Positive click", minus: "Negative click", end: "Ended" })[kindOf(step)];
  const actor = (step) => (step.by === "person" ? "by a person" : "by the policy");
  const pixelOf = (step) => [Math.min(W - 1, Math.floor(step.x * W)), Math.min(H - 1, Math.floor(step.y * H))];

  const icon = (kind) => {
    const shapes = {
      plus: [draw("circle", { cx: 9, cy: 9, r: 6.5 })],
      minus: [draw("path", { d: "M3.5 3.5l11 11M14.5 3.5l-11 11" })],
      end: [draw("path", { d: "M3 9.5l4 4 8-9" })],
      start: [draw("path", { d: "M6.5 6.6a2.6 2.6 0 1 1 3.6 2.6c-.8.4-1.1.9-1.1 1.8M9 14.2v.1" })],
    };
    return draw("svg", { class: `icon ${kind}`, viewBox: "0 0 18 18", "aria-hidden": "true" }, ...shapes[kind]);
  };

  // ---- the picture ------------------------------------------------------------------------------------
  const stage = $("stage"), svg = $("picture");
  const view = { x: width / 2, y: height / 2, zoom: 1 };
  const pixels = $("pixels");
  pixels.setAttribute("width", width);
  pixels.setAttribute("height", height);
  pixels.setAttribute("href", "data:image/png;base64," + picture.png);
  const edges = picture.edges || {};
  for (const side of ["left", "right", "top", "bottom"]) $(`edge-${side}`).textContent = edges[side] || "";

  const unitsPerScreenPixel = () => {
    const box = svg.getBoundingClientRect();
    return Math.max(width / (box.width || 1), height / (box.height || 1)) / view.zoom;
  };

  // Beside its mark, in the first corner where no other label stands: two clicks on one spot must not read "13".
  const corners = [[12, -8, "start"], [-12, -8, "end"], [12, 19, "start"], [-12, 19, "end"], [0, -17, "middle"], [0, 29, "middle"]];
  const placeLabel = (x, y, k, taken) => {
    const free = corners.find(([dx, dy]) => taken.every(([tx, ty]) => Math.hypot(x + dx * k - tx, y + dy * k - ty) > 17 * k));
    const [dx, dy, anchor] = free || corners[0];
    taken.push([x + dx * k, y + dy * k]);
    return { x: x + dx * k, y: y + dy * k, "text-anchor": anchor };
  };

  const marksUpTo = (n, k) => {
    const taken = [];
    return steps.slice(0, n).filter((step) => step.kind === "click")
      .map((step) => markOf(step, k, step === steps[n - 1], taken));
  };

  const markOf = (step, k, latest, taken) => {
    const kind = kindOf(step), r = 9 * k;
    const [col, row] = pixelOf(step);
    const x = (col + 0.5) * ux, y = (row + 0.5) * uy;
    const shape = (name, stroke) => (kind === "plus"
      ? draw("circle", { class: name, cx: x, cy: y, r, "stroke-width": stroke * k })
      : draw("path", { class: name, "stroke-width": stroke * k,
        d: `M${x - r * .8} ${y - r * .8}L${x + r * .8} ${y + r * .8}M${x + r * .8} ${y - r * .8}L${x - r * .8} ${y + r * .8}` }));
    const label = draw("text", { ...placeLabel(x, y, k, taken), "font-size": 14 * k, "stroke-width": 3 * k });
    label.textContent = step.number;
    const title = draw("title");
    title.textContent = `Step ${step.number}: ${nameOf(step).toLowerCase()} ${actor(step)}`;
    return draw("g", { class: `mark ${kind}${latest ? "" : " earlier"}` }, title, shape("halo", 6), shape("shape", 3), label);
  };

  const layOut = () => {
    const w = width / view.zoom, h = height / view.zoom;
    view.x = Math.min(width - w / 2, Math.max(w / 2, view.x));
    view.y = Math.min(height - h / 2, Math.max(h / 2, view.y));
    svg.setAttribute("viewBox", `${view.x - w / 2} ${view.y - h / 2} ${w} ${h}`);
    stage.classList.toggle("zoomed", view.zoom > 1);
    $("zoom-out").disabled = $("zoom-fit").disabled = view.zoom <= 1;
    const k = unitsPerScreenPixel();
    $("hatch").setAttribute("patternTransform", `rotate(45) scale(${k})`);
    $("marks").replaceChildren(...($("show-marks").checked ? marksUpTo(position, k) : []));
    if (picture.real_mm) {
      const pixelsPerMm = 1 / (k * shorter);
      const length = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm * pixelsPerMm < stage.clientWidth * 0.3) || 1;
      $("scale").hidden = false;
      $("scale-text").textContent = `${length} mm`;
      $("scale-bar").style.width = `${length * pixelsPerMm}px`;
    }
  };

  // ---- the state --------------------------------------------------------------------------------------
  let position = 0, timer = 0;
  const mode = () => document.querySelector("input[name=view]:checked").value;

  const paintMask = () => {
    const shown = mode() === "before" ? Math.max(0, position - 1) : position;
    const change = mode() === "change" && position > 0;
    const path = outlineOf(shown), put = (id, d) => $(id).setAttribute("d", d);
    put("fill", $("show-fill").checked && !change ? path : "");
    put("outline", $("show-outline").checked ? path : "");
    put("outline-halo", $("show-outline").checked && !change ? path : "");
    put("gained", change ? gainedBy(position) : "");
    put("lost", change ? lostBy(position) : "");
    $("fill").setAttribute("fill-opacity", $("opacity").value / 100);
    $("legend").hidden = mode() !== "change";
    stage.classList.toggle("change", change);
    stage.classList.toggle("smooth", $("smooth").checked);
  };

  const figure = (term, value, small) => [make("dt", { textContent: term }),
    make("dd", { textContent: value }, ...(small ? [make("small", { textContent: small })] : []))];

  const tell = () => {
    const step = steps[position - 1];
    $("position").textContent = step ? `Step ${position} of ${steps.length}` : `Question · ${steps.length} steps`;
    $("step-title").textContent = step ? `Step ${step.number}` : "The question";
    $("step-by").textContent = step ? actor(step) : "";
    const action = $("action");
    if (!step) {
      action.replaceChildren(icon("start"), "The picture before the first action");
    } else if (step.kind === "click") {
      const [col, row] = pixelOf(step);
      action.replaceChildren(icon(kindOf(step)), nameOf(step), make("small", {
        textContent: `(${step.x.toFixed(4)}, ${step.y.toFixed(4)}) · column ${col}, row ${row}` }));
    } else {
      action.replaceChildren(icon("end"), "Ended: the mask is final");
    }
    const thinking = step ? step.thinking.trim() : run.question;
    $("thinking").textContent = thinking || (step.by === "person" ? "A click of the person at the screen."
      : "No thinking was written.");
    $("thinking").classList.toggle("none", !thinking);
    $("step-answer").hidden = !(step && step.answer);
    $("step-answer").textContent = step && step.answer ? step.answer : "";
    $("raw").hidden = !(step && step.reply);
    $("reply").textContent = !step ? "" : !step.unreadable ? step.reply
      : `${step.unreadable}\n\n– this could not be read; asked again, it replied: –\n\n${step.reply}`;
    const figures = $("figures");
    if (!step) {
      figures.replaceChildren(make("div", {}, ...figure("Picture", `${W} × ${H}`, picture.real_mm
        ? `pixels of ${+picture.col_mm.toFixed(3)} × ${+picture.row_mm.toFixed(3)} mm` : "pixels, size unknown")));
    } else {
      const parts = [["policy", step.seconds.policy], ["segmenter", step.seconds.segmenter]]
        .filter(([, s]) => s > 0.0005).map(([who, s]) => `${who} ${s < 0.1 ? s.toFixed(3) : s.toFixed(2)} s`);
      const change = areas[position] - areas[position - 1];
      const share = areas[position - 1] > 0 && change ? `${change > 0 ? "+" : "−"}${Math.abs(100 * change / areas[position - 1]).toFixed(0)} %` : "";
      figures.replaceChildren(
        ...[figure("Area", measure(step.area), ""), figure("Change", `${signed(change)}\u00a0${unit}`, share),
          ...(step.score === null ? [] : [figure("Segmenter's own score", step.score.toFixed(2), "its estimate, not a measurement")]),
          figure("Time", seconds(step.seconds.total || 0), parts.join(", "))].map((pair) => make("div", {}, ...pair)));
    }
    $("picture-title").textContent = step
      ? `Picture with the mask after step ${position}, ${measure(step.area)}` : "The picture, no mask yet";
    $("first").disabled = $("previous").disabled = position === 0;
    $("next").disabled = $("last").disabled = position === steps.length;
    $("play").disabled = steps.length === 0;
    rows.forEach((row, index) => {
      if (index === position) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
    });
  };

  const show = () => { tell(); paintMask(); layOut(); };
  const go = (n, follow = true) => {
    position = Math.min(steps.length, Math.max(0, n));
    document.body.dataset.position = position;
    show();
    if (follow && list.scrollHeight > list.clientHeight) rows[position].scrollIntoView({ block: "nearest" });
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    $("play").setAttribute("aria-pressed", "false");
    $("play").setAttribute("aria-label", "Play");
  };
  const togglePlay = () => {
    if (timer) return stop();
    if (position === steps.length) go(0);
    $("play").setAttribute("aria-pressed", "true");
    $("play").setAttribute("aria-label", "Pause");
    timer = setInterval(() => { go(position + 1); if (position === steps.length) stop(); }, 1400);
  };
  const byHand = (n) => { stop(); go(n); };

  // ---- the list and the header ------------------------------------------------------------------------
  const list = $("steps");
  const largest = Math.max(1, ...areas);
  const row = (index) => {
    const step = steps[index - 1];
    const words = make("span", { className: "words" });
    if (step && step.by === "person") words.append(make("em", { textContent: "person" }));
    words.append(step ? step.thinking.trim() || nameOf(step) : run.question);
    const area = make("span", { className: "area" });
    if (step) {
      area.append(measure(step.area), make("small", { textContent: signed(areas[index] - areas[index - 1]) }));
    }
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * areas[index] / largest}%`;
    const button = make("button", { type: "button" },
      make("span", { className: "number", textContent: step ? step.number : "" }),
      icon(step ? kindOf(step) : "start"), words, area, bar);
    button.setAttribute("aria-label", step
      ? `Step ${step.number}, ${nameOf(step).toLowerCase()} ${actor(step)}, area ${measure(step.area)}` : "The question");
    button.addEventListener("click", () => byHand(index));
    return button;
  };
  const rows = Array.from({ length: steps.length + 1 }, (_, index) => row(index));
  list.append(...rows.map((button) => make("li", {}, button)));

  document.title = `${run.question.slice(0, 80)} – IBIS review`;
  $("question").textContent = run.question;
  $("status").textContent = run.outcome;
  $("answer").textContent = run.answer || run.reason || "";
  $("note").textContent = run.note || "";
  $("note").hidden = !run.note;
  $("facts").append(...run.facts.flatMap(([term, value]) => [make("dt", { textContent: term }), make("dd", { textContent: value })]));

  // ---- hands ------------------------------------------------------------------------------------------
  $("first").addEventListener("click", () => byHand(0));
  $("previous").addEventListener("click", () => byHand(position - 1));
  $("next").addEventListener("click", () => byHand(position + 1));
  $("last").addEventListener("click", () => byHand(steps.length));
  $("play").addEventListener("click", togglePlay);
  document.querySelectorAll(".tools input").forEach((input) => input.addEventListener("input", show));

  const zoomBy = (factor, at) => {
    const zoom = Math.min(16, Math.max(1, view.zoom * factor));
    const p = at || { x: view.x, y: view.y };
    view.x = p.x + (view.x - p.x) * view.zoom / zoom;
    view.y = p.y + (view.y - p.y) * view.zoom / zoom;
    view.zoom = zoom;
    layOut();
  };
  const fit = () => { view.zoom = 1; layOut(); };
  const under = (event) => {
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return { x: p.x, y: p.y };
  };
  $("zoom-in").addEventListener("click", () => zoomBy(1.5));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
  $("zoom-fit").addEventListener("click", fit);
  svg.addEventListener("dblclick", (event) => zoomBy(2, under(event)));
  // A bare wheel scrolls the page; with Ctrl (which a trackpad's pinch sends too) it zooms.
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 250), under(event));
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
  new ResizeObserver(layOut).observe(stage);

  const tick = (id) => () => { $(id).checked = !$(id).checked; show(); };
  const toggleChange = () => {
    document.querySelector(`input[name=view][value=${mode() === "change" ? "mask" : "change"}]`).checked = true;
    show();
  };
  const keys = {
    ArrowLeft: () => byHand(position - 1), ArrowUp: () => byHand(position - 1),
    ArrowRight: () => byHand(position + 1), ArrowDown: () => byHand(position + 1),
    Home: () => byHand(0), End: () => byHand(steps.length), " ": togglePlay,
    c: toggleChange, f: tick("show-fill"), o: tick("show-outline"), m: tick("show-marks"), s: tick("smooth"),
    "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), "0": fit,
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    // A slider and a radio use the arrows themselves, a focused button the space bar.
    if (target.matches("input[type=range], input[type=radio]") && /^(Arrow|Home|End)/.test(event.key)) return;
    if (event.key === " " && target.matches("button, input, summary")) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  // ---- on paper: one figure a step --------------------------------------------------------------------
  const figureOf = (step, index) => {
    const k = Math.max(width / 330, height / 220);
    const image = draw("image", { x: 0, y: 0, width, height, preserveAspectRatio: "none", href: pixels.getAttribute("href") });
    const mask = draw("path", { class: "mask", "fill-rule": "evenodd", d: outlineOf(index + 1) });
    const marks = marksUpTo(index + 1, k);
    const change = signed(areas[index + 1] - areas[index]);
    return make("figure", {}, draw("svg", { viewBox: `0 0 ${width} ${height}` }, image, mask, ...marks),
      make("figcaption", {}, make("strong", {
        textContent: `${step.number}. ${nameOf(step)} ${actor(step)} · ${measure(step.area)} (${change})` }),
      step.answer ? `${step.thinking.trim()}\n${step.answer}` : step.thinking.trim()));
  };
  addEventListener("beforeprint", () => { $("record").open = true; $("sheet").replaceChildren(...steps.map(figureOf)); });
  addEventListener("afterprint", () => $("sheet").replaceChildren());

  if (matchMedia("(max-width: 860px)").matches) $("record").open = false;
  const asked = /^#(\d+)$/.exec(location.hash);
  go(asked ? Number(asked[1]) : steps.length, false);
})();
