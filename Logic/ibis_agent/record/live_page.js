// The live page of a run that waits for the person at the terminal: it reloads when the record has changed, and turns
// a click into a terminal command. It is served by cli/live.py and communicates with nothing else.
(() => {
  const run = JSON.parse($("data").textContent), grid = gridOf(run.picture), svg = $("picture");
  const NEWS = 400, TWO_CLICKS = 300; // milliseconds: between two polls; within a double click, which zooms and sends no command
  const ENDED = "The run has ended. Its review page is review.html in the results folder.";
  let gone = 0, waiting = run.live.waiting;

  const tell = (text) => { $("live-text").textContent = text; };
  const sign = () => document.querySelector("input[name=sign]:checked").value;
  const send = async (line) => {
    let taken = false;
    if (run.live.acts) {
      try { taken = (await (await fetch("command", { method: "POST", body: line })).json()).taken; } catch { /* it has ended */ }
    }
    if (taken) return tell(`${line} …`);
    if (run.live.acts) return tell("The agent is busy: click again when it is waiting.");
    try { await navigator.clipboard.writeText(line); } catch { /* it can be copied by hand */ }
    return tell(`Type in the terminal (copied): ${line}`);
  };

  const choice = (value, text, title) => make("label", { title },
    make("input", { type: "radio", name: "sign", value, checked: value === "+" }), make("span", { textContent: text }));
  const button = (line, text) => {
    const made = make("button", { type: "button", textContent: text });
    made.addEventListener("click", () => send(line));
    return made;
  };
  document.querySelector(".viewer").prepend(make("div", { id: "live", className: "live" },
    make("fieldset", { className: "segmented" }, choice("+", "+ inside", "Click on the structure to include it"),
      choice("-", "− outside", "Click on a region to exclude it (hold Shift for a single click)")),
    ...(run.live.acts ? [button("c", "Continue"), button("b", "Back"), button("u", "Undo"), button("r", "Redo")] : []),
    make("output", { id: "live-text", textContent: "Click in the image." })));

  let last = 0, from = null;
  svg.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
  svg.addEventListener("click", (event) => {
    clearTimeout(last);
    const moved = from && Math.hypot(event.clientX - from[0], event.clientY - from[1]) > 4;
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const x = p.x / grid.width, y = p.y / grid.height;
    if (event.detail > 1 || moved || !(x >= 0 && x < 1 && y >= 0 && y < 1)) return;
    const slice = run.volume ? `${document.body.dataset.slice} ` : "";
    const line = `${slice}${event.shiftKey ? "-" : sign()} ${x.toFixed(4)} ${y.toFixed(4)}`;
    last = setTimeout(() => send(line), TWO_CLICKS);
  });

  const look = async () => {
    try {
      const state = await (await fetch("state")).json();
      gone = 0;
      if (state.ended) return tell(ENDED);
      if (state.version !== run.live.version) return location.replace(location.pathname);
      if (state.waiting !== waiting) tell(state.waiting ? "Click in the image." : "The agent is working …");
      waiting = state.waiting;
    } catch {
      gone += 1;
    }
    if (gone > 3) return tell(ENDED);
    return setTimeout(look, NEWS);
  };
  setTimeout(look, NEWS);
})();
