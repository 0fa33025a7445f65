// Two masks of one scan side by side, and where they differ.
(() => {
  const page = JSON.parse($("data").textContent);
  const { slices, names, picture } = page;
  const grid = gridOf(picture), size = grid.W * grid.H;
  const unit = picture.real_mm ? "mm²" : "px";
  let at = page.worst;

  const panel = (title, paths) => {
    const image = draw("image", { width: grid.width, height: grid.height, preserveAspectRatio: "none" });
    const drawn = draw("svg", { viewBox: `0 0 ${grid.width} ${grid.height}`, role: "img" }, draw("title"), image, ...paths);
    drawn.querySelector("title").textContent = title;
    const edge = (side) => make("span", { className: `edge ${side === "top" ? "top-edge" : side}`, textContent: picture.edges[side] || "" });
    $("sides").append(make("figure", {}, make("div", { className: "stage" }, drawn, ...["left", "right", "top", "bottom"].map(edge)),
      make("figcaption", { dir: "auto", textContent: title })));
    return image;
  };
  const path = (name) => draw("path", { class: name, "fill-rule": "evenodd" });
  const masks = [path("mask a"), path("mask b")], parts = [path("mask a"), path("mask b"), path("mask both")];
  const images = [panel(`A: ${names[0]}`, [masks[0]]), panel(`B: ${names[1]}`, [masks[1]]),
    panel("Only A, only B, both", parts)];

  const first = slices[0].index, count = slices[slices.length - 1].index - first + 1, wide = 600 / count;
  const here = draw("rect", { class: "here", y: 0, height: 100, width: Math.max(wide, 2) });
  $("plot").append(...slices.map((slice) => draw("rect", { class: "bar", x: (slice.index - first) * wide, y: 100 - 96 * slice.dice,
    width: Math.max(0.5, wide * 0.9), height: 96 * slice.dice })), here);

  const show = (place) => {
    at = Math.min(slices.length - 1, Math.max(0, place));
    const slice = slices[at], [a, b] = slice.runs.map((runs) => decode(runs, size));
    document.body.dataset.slice = slice.index;
    for (const image of images) {
      if (slice.png) image.setAttribute("href", source(slice.png));
      else image.removeAttribute("href");
    }
    const put = (node, inside) => node.setAttribute("d", trace(grid, inside));
    put(masks[0], (p) => a[p]);
    put(masks[1], (p) => b[p]);
    put(parts[0], (p) => a[p] && !b[p]);
    put(parts[1], (p) => b[p] && !a[p]);
    put(parts[2], (p) => a[p] && b[p]);
    document.querySelectorAll(".sides .mask").forEach(({ style }) => {
      style.fillOpacity = $("show-fill").checked ? $("opacity").value / 100 : 0;
      style.strokeOpacity = $("show-outline").checked ? 1 : 0;
    });
    $("slice").value = at;
    $("slice-text").textContent = [slice.index, `Dice ${slice.dice.toFixed(3)}`,
      ...slice.areas.map((area, n) => `${"AB"[n]} ${grouped(area)}\u00a0${unit}`)].join(" · ");
    here.setAttribute("x", (slice.index - first) * wide);
  };

  $("names").textContent = names.join(" – ");
  $("measures").append(...page.lines.map(([term, value]) => make("div", {}, make("dt", { textContent: term }), make("dd", { textContent: value }))));
  $("slices").hidden = slices.length < 2;
  $("slice").max = slices.length - 1;
  $("slice").addEventListener("input", () => show(Number($("slice").value)));
  $("plot").addEventListener("click", (event) => {
    const box = $("plot").getBoundingClientRect(), index = first + Math.floor((event.clientX - box.left) / box.width * count);
    show(slices.reduce((best, slice, place) => (Math.abs(slice.index - index) < Math.abs(slices[best].index - index) ? place : best), 0));
  });
  document.querySelectorAll(".tools input").forEach((input) => input.addEventListener("input", () => show(at)));
  const tick = (id) => { $(id).checked = !$(id).checked; show(at); };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=range]")) return;
    const act = { ArrowRight: () => show(at + 1), ArrowUp: () => show(at + 1), ArrowLeft: () => show(at - 1), ArrowDown: () => show(at - 1),
      f: () => tick("show-fill"), o: () => tick("show-outline") }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  show(at);
})();
