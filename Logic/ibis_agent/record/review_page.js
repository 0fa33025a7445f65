// Shows one run, step by step. Position 0 is the picture with the question; position n is the state after step n.
// In a volume, every slice can also be shown with its final mask.
(() => {
  const run = JSON.parse($("data").textContent);
  const { picture, steps, slices, volume } = run;
  const grid = gridOf(picture);
  const { width, height } = grid;
  const size = grid.W * grid.H;

  // What is shown: a position in the run, a slice (its index in `slices`), and whether that slice is shown with its
  // final mask instead of the mask at the position.
  let position = 0, at = 0, final = false, timer = 0;
  const mode = () => document.querySelector("input[name=view]:checked").value;

  // Masks.
  const runsAfter = (n) => (n === 0 ? slices[at].begun : steps[n - 1].runs || slices[steps[n - 1].slice].runs);
  const outlines = new Map();
  const remembered = (key, inside) => {
    if (!outlines.has(key)) outlines.set(key, trace(grid, inside()));
    return outlines.get(key);
  };
  const outlineOf = (key, runs) => remembered(key, () => { const mask = decode(runs, size); return (p) => mask[p]; });
  const difference = (key, more, less) => remembered(key, () => {
    const [a, b] = [decode(more, size), decode(less, size)];
    return (p) => a[p] && !b[p];
  });
  const outlineAfter = (n) => outlineOf(n ? `m${n}` : `b${at}`, runsAfter(n));
  const outlineAtEnd = (place) => outlineOf(`s${place}`, slices[place].runs);
  const beforeStep = (n) => (n > 0 ? steps[n - 1].before : 0);

  // Texts.
  const unit = picture.real_mm ? "mm²" : "px";
  const measure = (number) => `${grouped(number)}\u00a0${unit}`;
  const areaBefore = (n) => {
    const before = beforeStep(n);
    return before ? steps[before - 1].area : n ? slices[steps[n - 1].slice].begun_area : 0;
  };
  const changeOf = (n) => (n ? steps[n - 1].area - areaBefore(n) : 0);
  const kindOf = (step) => (step.kind === "click" ? (step.positive ? "plus" : "minus")
    : step.kind === "grow" || step.kind === "look" ? step.kind : "end");
  const nameOf = (step) => (step.box ? "Box" : { plus: "Positive click", minus: "Negative click", end: "Ended", look: "Look",
    grow: "Propagated through the slices" })[kindOf(step)];
  const actor = (step) => (step.by === "person" ? "by a person" : "by the policy");
  const sliceName = (place) => `slice ${slices[place].index}`;
  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

  // The picture.
  const stage = $("stage"), svg = $("picture"), pixels = $("pixels");
  const view = { x: width / 2, y: height / 2, zoom: 1 };
  pixels.setAttribute("width", width);
  pixels.setAttribute("height", height);
  if (picture.frame) {
    const [x, y, w, h] = picture.frame;
    const box = { x: x * grid.ux, y: y * grid.uy, width: w * grid.ux, height: h * grid.uy };
    for (const [name, value] of Object.entries(box)) $("frame").setAttribute(name, value);
  }
  for (const side of ["left", "right", "top", "bottom"]) $(`edge-${side}`).textContent = picture.edges[side] || "";

  const unitsPerScreenPixel = () => {
    const box = svg.getBoundingClientRect();
    return Math.max(width / (box.width || 1), height / (box.height || 1)) / view.zoom;
  };
  const marksShown = () => (final ? slices[at].marks : position ? steps[position - 1].marks : []);

  const layOut = () => {
    const w = width / view.zoom, h = height / view.zoom;
    view.x = Math.min(width - w / 2, Math.max(w / 2, view.x));
    view.y = Math.min(height - h / 2, Math.max(h / 2, view.y));
    svg.setAttribute("viewBox", `${view.x - w / 2} ${view.y - h / 2} ${w} ${h}`);
    stage.classList.toggle("zoomed", view.zoom > 1);
    $("zoom-out").disabled = $("zoom-fit").disabled = view.zoom <= 1;
    const k = unitsPerScreenPixel();
    $("hatch").setAttribute("patternTransform", `rotate(45) scale(${k})`);
    $("marks").replaceChildren(...($("show-marks").checked ? marksOf(grid, marksShown(), k) : []));
    if (picture.real_mm) {
      const pixelsPerMm = 1 / (k * grid.shorter);
      const length = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm * pixelsPerMm < stage.clientWidth * 0.3) || 1;
      $("scale").hidden = false;
      $("scale-text").textContent = `${length} mm`;
      $("scale-bar").style.width = `${length * pixelsPerMm}px`;
    }
  };

  const paintPicture = () => {
    const slice = slices[at], href = source(slice.png);
    if (pixels.getAttribute("href") !== href) pixels.setAttribute("href", href);
    stage.classList.toggle("smooth", $("smooth").checked || slice.reduced > 1);
    const change = mode() === "change" && position > 0 && !final;
    const shown = mode() === "before" ? beforeStep(position) : position;
    const path = final ? outlineAtEnd(at) : outlineAfter(shown);
    const put = (id, d) => $(id).setAttribute("d", d);
    put("fill", $("show-fill").checked && !change ? path : "");
    put("outline", $("show-outline").checked ? path : "");
    put("outline-halo", $("show-outline").checked && !change ? path : "");
    const [after, before] = change ? [runsAfter(position), runsAfter(beforeStep(position))] : [[], []];
    put("gained", change ? difference(`g${position}`, after, before) : "");
    put("lost", change ? difference(`l${position}`, before, after) : "");
    $("fill").setAttribute("fill-opacity", $("opacity").value / 100);
    document.querySelectorAll(".cut .mask").forEach(({ style }) => {
      style.fillOpacity = $("show-fill").checked ? $("opacity").value / 100 : 0;
      style.strokeOpacity = $("show-outline").checked ? 1 : 0;
    });
    $("legend").hidden = mode() !== "change";
    stage.classList.toggle("change", change);
  };

  // The panel of the step.
  const figure = (term, value, small) => make("div", {}, make("dt", { textContent: term }),
    make("dd", { textContent: value }, ...(small ? [make("small", { textContent: small })] : [])));

  const figuresOf = (step) => {
    if (!step) {
      return [figure("Image", `${grid.W} × ${grid.H}`, picture.real_mm
        ? `pixels of ${+picture.col_mm.toFixed(3)} × ${+picture.row_mm.toFixed(3)} mm` : "pixels, size unknown")];
    }
    const parts = [["policy", step.seconds.policy], ["segmenter", step.seconds.segmenter]]
      .filter(([, s]) => s > 0.0005).map(([who, s]) => `${who} ${s < 0.1 ? s.toFixed(3) : s.toFixed(2)} s`);
    const change = changeOf(position), from = areaBefore(position);
    const share = from > 0 && change ? `${change > 0 ? "+" : "−"}${Math.abs(100 * change / from).toFixed(0)} %` : "";
    return [
      ...(step.area === null ? [] : [figure("Area", measure(step.area), ""), figure("Change", `${signed(change)}\u00a0${unit}`, share)]),
      ...(step.score === null ? [] : [figure("Segmenter's score", step.score.toFixed(2), "its own estimate, not a measurement")]),
      ...(step.kind === "end" ? [] : [figure("Time", seconds(step.seconds.total || 0), parts.join(", "))])];
  };

  const tell = () => {
    const step = steps[position - 1];
    $("position").textContent = step ? `Step ${position} of ${steps.length}` : `Question · ${steps.length} step${steps.length === 1 ? "" : "s"}`;
    $("step-title").textContent = !step ? "The question" : `Step ${position}${volume ? `, ${sliceName(step.slice)}` : ""}`;
    $("step-by").textContent = step ? actor(step) : "";
    const action = $("action");
    if (!step) {
      action.replaceChildren(icon("start"), slices[at].begun_area
        ? "The mask that the run started from" : "The image before the first action");
    } else if (step.kind === "click") {
      const [col, row] = pixelOf(grid, step);
      action.replaceChildren(icon(kindOf(step)), nameOf(step), make("small", {
        textContent: step.box ? `(${step.box.map((edge) => edge.toFixed(4)).join(", ")})`
          : `(${step.x.toFixed(4)}, ${step.y.toFixed(4)}) · column ${col}, row ${row}` }));
    } else {
      action.replaceChildren(icon(kindOf(step)), step.kind === "terminate" ? "Finished: the mask is final" : nameOf(step));
    }
    $("words").textContent = step ? capital(step.words) : "";
    $("words").hidden = !(step && step.words);
    const thinking = step ? step.thinking.trim() : run.question;
    $("thinking").textContent = thinking || (step.by === "person" && step.kind === "click"
      ? "A click added by the person." : step.by === "person" && kindOf(step) === "end"
        ? "The person accepted the mask." : "The policy wrote no thinking.");
    $("thinking").classList.toggle("none", !thinking);
    $("thinking").hidden = Boolean(step && step.area === null);
    $("step-answer").hidden = !(step && step.answer);
    $("step-answer").textContent = step && step.answer ? step.answer : "";
    $("raw").hidden = !(step && step.reply);
    $("reply").textContent = !step ? "" : !step.unreadable ? step.reply
      : `${step.unreadable}\n\n– this reply could not be read; asked again, the policy replied: –\n\n${step.reply}`;
    $("figures").replaceChildren(...figuresOf(step));
    $("picture-title").textContent = final ? `${capital(sliceName(at))} with its mask, ${measure(slices[at].area)}`
      : step && step.area !== null ? `Image with the mask after step ${position}, ${measure(step.area)}` : "The image";
    $("first").disabled = $("previous").disabled = position === 0;
    $("next").disabled = $("last").disabled = position === steps.length;
    $("play").disabled = steps.length === 0;
    rows.forEach((row, index) => {
      if (index === position) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
    });
    if (volume) tellSlice();
  };

  // Slices, their plot and the cuts across them.
  const first = slices[0].index, count = slices[slices.length - 1].index - first + 1;
  const largestSlice = Math.max(1e-9, ...slices.map((slice) => slice.area));
  const tellSlice = () => {
    const slice = slices[at];
    $("slice").value = at;
    $("slice").setAttribute("aria-valuetext", sliceName(at));
    $("slice-text").textContent = [slice.index, final || !position ? measure(slice.area) : "at this step",
      ...(final && slice.score !== null ? [`score ${slice.score.toFixed(2)}`] : []),
      ...(slice.reduced > 1 ? [`shown at 1/${slice.reduced} size`] : [])].join(" · ");
    document.querySelectorAll(".cut .here, .plot .here").forEach((here) => here.moveTo(slice.index));
  };
  const nearest = (index) => slices.reduce((best, slice, place) =>
    (Math.abs(slice.index - index) < Math.abs(slices[best].index - index) ? place : best), 0);

  const drawPlot = (svg) => {
    const wide = 600 / count;
    const here = draw("rect", { class: "here", y: 0, height: 100, width: Math.max(wide, 2) });
    here.moveTo = (index) => here.setAttribute("x", (index - first) * wide);
    svg.append(...slices.map((slice) => {
      const high = 96 * slice.area / largestSlice;
      return draw("rect", { class: slice.anchor ? "bar anchor" : "bar", x: (slice.index - first) * wide, y: 100 - high,
        width: Math.max(0.5, wide * 0.9), height: high });
    }), here);
    return svg;
  };

  const drawCut = (cut) => {
    const g = gridOf(cut), n = cut.down ? cut.height : cut.width, mask = decode(cut.runs, cut.width * cut.height);
    const here = draw("line", { class: "here" });
    const placeOf = (index) => (cut.backwards ? n - 1 - (index - cut.first) : index - cut.first) + 0.5;
    here.moveTo = (index) => {
      const p = placeOf(index) * (cut.down ? g.uy : g.ux);
      const ends = cut.down ? { x1: 0, x2: g.width, y1: p, y2: p } : { x1: p, x2: p, y1: 0, y2: g.height };
      for (const [name, value] of Object.entries(ends)) here.setAttribute(name, value);
    };
    const drawn = draw("svg", { viewBox: `0 0 ${g.width} ${g.height}`, role: "img" }, draw("title"),
      draw("image", { width: g.width, height: g.height, preserveAspectRatio: "none", href: source(cut.png) }),
      draw("path", { class: "mask", "fill-rule": "evenodd", d: trace(g, (p) => mask[p]) }), here);
    drawn.querySelector("title").textContent = `${cut.plane} cut through the mask`;
    drawn.addEventListener("click", (event) => {
      const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawn.getScreenCTM().inverse());
      const line = Math.floor(cut.down ? p.y / g.uy : p.x / g.ux);
      showSlice(nearest(cut.first + (cut.backwards ? n - 1 - line : line)));
    });
    const edge = (side) => make("span", { className: `edge ${side === "top" ? "top-edge" : side}`, textContent: cut.edges[side] });
    return make("div", { className: "cut" }, drawn, make("span", { className: "name", textContent: capital(cut.plane) }),
      ...["left", "right", "top", "bottom"].map(edge));
  };

  // The state.
  const show = () => {
    document.body.dataset.slice = slices[at].index;
    tell();
    paintPicture();
    layOut();
  };
  const go = (n, follow = true) => {
    position = Math.min(steps.length, Math.max(0, n));
    at = position ? steps[position - 1].slice : run.key;
    final = position > 0 && steps[position - 1].runs === null;
    document.body.dataset.position = position;
    show();
    if (follow && list.scrollHeight > list.clientHeight) rows[position].scrollIntoView({ block: "nearest" });
  };
  const showSlice = (place) => {
    stop();
    at = Math.min(slices.length - 1, Math.max(0, place));
    final = true;
    show();
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

  // The list and the header.
  const list = $("steps");
  const largest = Math.max(1, ...steps.map((step) => step.area || 0));
  const row = (n) => {
    const step = steps[n - 1];
    const words = make("span", { className: "words" });
    const prefix = !step ? "" : [volume ? sliceName(step.slice) : "", step.by === "person" ? "person" : ""].filter(Boolean).join(", ");
    if (prefix) words.append(make("em", { textContent: prefix }));
    words.append(step ? step.thinking.trim() || step.words || nameOf(step) : run.question);
    const area = make("span", { className: "area" });
    if (step && step.area !== null) {
      area.append(measure(step.area), make("small", { textContent: signed(changeOf(n)) }));
    }
    const bar = make("span", { className: "bar" });
    bar.style.width = `${100 * (step && step.area || 0) / largest}%`;
    const button = make("button", { type: "button" },
      make("span", { className: "number", textContent: step ? n : "" }),
      icon(step ? kindOf(step) : "start"), words, area, bar);
    button.setAttribute("aria-label", step
      ? `Step ${n}, ${nameOf(step).toLowerCase()} ${actor(step)}${step.area === null ? "" : `, area ${measure(step.area)}`}` : "The question");
    button.addEventListener("click", () => byHand(n));
    return button;
  };
  const rows = Array.from({ length: steps.length + 1 }, (_, n) => row(n));
  list.append(...rows.map((button) => make("li", {}, button)));

  document.title = `${run.question.slice(0, 80)} – IBIS review`;
  $("question").textContent = run.question;
  $("status").textContent = run.outcome;
  $("answer").textContent = run.answer || run.reason || "";
  $("caveats").hidden = !run.caveats.length;
  $("caveats").textContent = run.caveats.join(" ");
  $("note").textContent = run.note || "";
  $("note").hidden = !run.note;
  $("facts").append(...run.facts.flatMap(([term, value]) => [make("dt", { textContent: term }), make("dd", { textContent: value })]));
  $("measures").append(...run.measures.map(([term, value]) => figure(term, value, "")));
  $("measures").hidden = run.measures.length === 0;
  if (volume) {
    document.body.classList.add("volume");
    $("slices").hidden = $("slice-keys").hidden = false;
    $("slice").max = slices.length - 1;
    $("cuts").hidden = run.cuts.length === 0;
    $("cuts").append(...run.cuts.map(drawCut));
    drawPlot($("plot"));
    const clicked = slices.some((slice) => slice.anchor) ? " Green bars: slices with clicks." : "";
    $("plot-text").textContent = `Area of the mask in every slice${run.ml === null ? "" : `, ${run.ml} mL in total`}; the highest bar is ${measure(largestSlice)}.${clicked}`;
  }

  // Buttons, sliders, mouse and keys.
  $("first").addEventListener("click", () => byHand(0));
  $("previous").addEventListener("click", () => byHand(position - 1));
  $("next").addEventListener("click", () => byHand(position + 1));
  $("last").addEventListener("click", () => byHand(steps.length));
  $("play").addEventListener("click", togglePlay);
  $("slice").addEventListener("input", () => showSlice(Number($("slice").value)));
  $("plot").addEventListener("click", (event) => {
    const box = $("plot").getBoundingClientRect();
    showSlice(nearest(first + Math.floor((event.clientX - box.left) / box.width * count)));
  });
  document.querySelectorAll(".tools input").forEach((input) => input.addEventListener("input", show));
  watchZoom({ stage, svg, view, layOut, unitsPerScreenPixel, scroll: (by) => {
    const place = at + by;
    if (!volume || place < 0 || place >= slices.length) return false;
    if (by) showSlice(place);
    return true;
  } });

  const tick = (id) => () => { $(id).checked = !$(id).checked; show(); };
  const toggleChange = () => {
    document.querySelector(`input[name=view][value=${mode() === "change" ? "mask" : "change"}]`).checked = true;
    show();
  };
  const up = (by) => () => (volume ? showSlice(at + by) : byHand(position - by));
  const keys = {
    ArrowLeft: () => byHand(position - 1), ArrowUp: up(1), ArrowRight: () => byHand(position + 1), ArrowDown: up(-1),
    Home: () => byHand(0), End: () => byHand(steps.length), " ": togglePlay,
    c: toggleChange, f: tick("show-fill"), o: tick("show-outline"), m: tick("show-marks"), s: tick("smooth"),
    "+": () => $("zoom-in").click(), "=": () => $("zoom-in").click(), "-": () => $("zoom-out").click(), "0": () => $("zoom-fit").click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    // A slider and a radio button use the arrow keys themselves, and a focused button the space bar.
    if (target.matches("input[type=range], input[type=radio]") && /^(Arrow|Home|End)/.test(event.key)) return;
    if (event.key === " " && target.matches("button, input, summary")) return;
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  // Printing: a figure for each step; for a volume the cuts, the clicked slices, and some slices between them.
  const paperK = Math.max(width / 330, height / 220);
  const figureOf = (place, path, marks, title, text) => make("figure", {},
    draw("svg", { viewBox: `0 0 ${width} ${height}` },
      draw("image", { x: 0, y: 0, width, height, preserveAspectRatio: "none", href: source(slices[place].png) }),
      draw("path", { class: "mask", "fill-rule": "evenodd", d: path }), ...marksOf(grid, marks, paperK)),
    make("figcaption", {}, make("strong", { textContent: title }), text));
  const said = (step) => [step.words && capital(step.words), step.thinking.trim(), step.answer].filter(Boolean).join("\n");
  const sliceSheet = () => steps.map((step, index) => figureOf(step.slice, outlineAfter(index + 1), step.marks,
    `${step.number}. ${nameOf(step)} ${actor(step)} · ${measure(step.area)} (${signed(changeOf(index + 1))})`, said(step)));
  const volumeSheet = () => {
    const masked = slices.map((_, place) => place).filter((place) => slices[place].area > 0);
    const spread = masked.filter((_, n) => n % Math.ceil(masked.length / 12) === 0);
    const places = [...new Set([...spread, ...masked.filter((place) => slices[place].anchor)])].sort((a, b) => a - b);
    const cuts = run.cuts.map((cut) => make("figure", {}, drawCut(cut).querySelector("svg"),
      make("figcaption", {}, make("strong", { textContent: `${capital(cut.plane)} cut` }))));
    const lines = steps.map((step, n) => make("li", { textContent: `${n + 1}. ${capital(sliceName(step.slice))}: ${said(step) || nameOf(step)}` }));
    return [...cuts, drawPlot(draw("svg", { class: "plot", viewBox: "0 0 600 100", preserveAspectRatio: "none" })),
      ...places.map((place) => figureOf(place, outlineAtEnd(place), slices[place].marks,
        `${capital(sliceName(place))} · ${measure(slices[place].area)}`, "")),
      make("ol", {}, ...lines)];
  };
  const layOutSheet = () => { if (!$("sheet").firstChild) $("sheet").replaceChildren(...(volume ? volumeSheet() : sliceSheet())); };
  // In advance: otherwise the images would not be decoded yet when printing starts.
  (window.requestIdleCallback || setTimeout)(layOutSheet);
  addEventListener("beforeprint", () => { $("record").open = true; layOutSheet(); });

  if (matchMedia("(max-width: 860px)").matches) $("record").open = false;
  new ResizeObserver(layOut).observe(stage);
  const asked = /^#(\d+)$/.exec(location.hash);
  go(asked ? Number(asked[1]) : steps.length, false);
  if (volume && !asked) showSlice(run.key);
})();
