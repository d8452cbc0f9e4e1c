// The run as bars over time by depth: what ran at once, and what waited. One canvas; the tree says the same in words.

const LANE = 14;
const THIN = 5;
const THIN_LANES = 32;
const GUTTER = 58;

// Give each span the first lane that is free; beyond `most` lanes they share the last.
function lanes(spans, now, most) {
  const ends = [];
  for (const span of spans) {
    let lane = ends.findIndex((end) => end <= span.from);
    if (lane < 0) lane = ends.length < most ? ends.length : most - 1;
    ends[lane] = Math.max(ends[lane] || 0, span.to === null ? now + 1 : span.to);
    span.lane = lane;
  }
  return ends.length;
}

class Timeline {
  constructor(view) {
    this.view = view;
    this.box = element("div", "rlm-timeline");
    this.box.hidden = true;
    this.canvas = element("canvas", "");
    this.canvas.setAttribute("role", "img");
    this.told = element("div", "rlm-told");
    const key = element("div", "rlm-key");
    for (const [kind, words] of [["lm", "model"], ["cell", "code"], ["call", "sub-calls"], ["lost", "failed"]]) {
      const item = element("span", "", "");
      item.append(element("i", `rlm-key-${kind}`), element("span", "", words));
      key.append(item);
    }
    const foot = element("div", "rlm-foot");
    foot.append(this.told, key);
    this.box.append(this.canvas, foot);
    this.spots = [];
    this.drawnAt = this.took = this.waits = 0;
    this.canvas.addEventListener("mousemove", (event) => this.point(event, false));
    this.canvas.addEventListener("mouseleave", () => put(this.told, ""));
    this.canvas.addEventListener("click", (event) => this.point(event, true));
  }

  // Bands by depth: the lanes in which models and code took turns, and below them the lanes of sub-calls.
  bands(now) {
    const { store } = this.view;
    const bands = [];
    let top = 6;
    for (let depth = 0; depth <= store.depth; depth += 1) {
      const branches = [...store.branches.values()].filter((branch) => branch.depth === depth);
      const whole = branches.map((branch) => ({ from: branch.began, to: branch.status === "running" ? null : branch.ended, branch }));
      whole.sort((first, second) => first.from - second.from);
      const high = Math.max(lanes(whole, now, 24), 1);
      const calls = branches.flatMap((branch) => branch.spans.filter((span) => span.kind === "call"));
      calls.sort((first, second) => first.from - second.from);
      const thin = lanes(calls, now, THIN_LANES);
      const lane = depth === 0 ? LANE : high > 8 ? THIN : 9;
      bands.push({ depth, top, whole, calls, lane, callTop: top + high * (lane + 2) + 2, thin });
      top += high * (lane + 2) + (thin ? thin * THIN + 6 : 0) + 8;
    }
    return { bands, height: top };
  }

  // Draw what has changed, but not for more than a fifth of the time: the bars of a long run are many.
  changed() {
    if (this.box.hidden || this.waits) return;
    const wait = this.drawnAt + 5 * this.took - performance.now();
    if (wait <= 0) {
      this.draw();
      return;
    }
    this.waits = setTimeout(() => {
      this.waits = 0;
      this.draw();
    }, wait);
  }

  close() {
    clearTimeout(this.waits);
  }

  draw() {
    if (this.box.hidden) return;
    const before = performance.now();
    const { store } = this.view;
    const now = store.end ? store.end.at : store.now();
    const from = store.began;
    const span = Math.max(now - from, 0.5);
    const width = Math.max(this.box.clientWidth, 200);
    const { bands, height } = this.bands(now);
    const whole = height + 18;
    const ratio = window.devicePixelRatio || 1;
    const { canvas } = this;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(whole * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(whole * ratio);
      canvas.style.height = `${whole}px`;
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, whole);
    const style = getComputedStyle(this.box);
    const ink = (name) => style.getPropertyValue(`--rlm-${name}`).trim();
    const inks = { lm: ink("accent"), cell: ink("code-bar"), call: ink("call-bar"), lost: ink("bad"), line: ink("line"), text: ink("muted") };
    const room = width - GUTTER - 8;
    const x = (at) => GUTTER + (room * Math.min(Math.max(at - from, 0), span)) / span;
    this.spots = [];
    this.axis(pen, inks, span, room, height);
    pen.textBaseline = "middle";
    for (const band of bands) this.band(pen, inks, band, x, now);
    canvas.setAttribute("aria-label", this.summary(span));
    this.drawnAt = performance.now();
    this.took = this.drawnAt - before;
  }

  axis(pen, inks, span, room, height) {
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400];
    const step = steps.find((each) => (room * each) / span >= 70) || span / 4;
    pen.font = `11px ${getComputedStyle(this.box).fontFamily}`;
    pen.textBaseline = "alphabetic";
    for (let at = 0; at <= span; at += step) {
      const x = Math.round(GUTTER + (room * at) / span) + 0.5;
      pen.fillStyle = inks.line;
      pen.fillRect(x - 0.5, 0, 1, height);
      pen.fillStyle = inks.text;
      pen.textAlign = x > GUTTER + room - 20 ? "right" : at === 0 ? "left" : "center";
      pen.fillText(at === 0 ? "0" : duration(at), x, height + 13);
    }
  }

  band(pen, inks, band, x, now) {
    pen.fillStyle = inks.text;
    pen.textAlign = "left";
    pen.fillText(band.depth === 0 ? "root" : `depth ${band.depth}`, 0, band.top + LANE / 2);
    const bar = (span, top, high, colour) => {
      const left = x(span.from);
      const wide = Math.max(x(span.to === null ? now : span.to) - left, 1);
      pen.fillStyle = colour;
      pen.fillRect(left, top, wide > 2 ? wide - 0.5 : wide, high);
      this.spots.push({ left, right: left + Math.max(wide, 3), top, bottom: top + high, span });
    };
    for (const { branch, lane } of band.whole) {
      const top = band.top + lane * (band.lane + 2);
      for (const span of branch.spans) {
        if (span.kind !== "call") bar(span, top, band.lane, span.node.bad ? inks.lost : inks[span.kind]);
      }
      const turn = branch.turn;
      if (turn && turn.state === "asking" && branch.status === "running" && !this.view.store.end) {
        bar({ kind: "lm", from: turn.at, to: null, node: turn }, top, band.lane, inks.lm);
      }
    }
    for (const span of band.calls) {
      bar(span, band.callTop + span.lane * THIN, THIN - 1, span.node.bad ? inks.lost : inks.call);
    }
  }

  summary(span) {
    const { store } = this.view;
    const turns = store.branches.get(0).turns.length;
    const told = [count(turns, "iteration"), states(store.counts) && `sub-calls ${states(store.counts)}`, `depth ${store.depth}`];
    return `Timeline of ${duration(span)}: ${told.filter(Boolean).join(", ")}. The tree below tells each.`;
  }

  point(event, go) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    let found = null;
    for (const spot of this.spots) {
      if (x >= spot.left && x <= spot.right && y >= spot.top - 1 && y <= spot.bottom + 1) found = spot.span;
    }
    this.canvas.style.cursor = found ? "pointer" : "";
    if (!found) {
      put(this.told, "");
      return;
    }
    const { node } = found;
    const took = duration((found.to === null ? this.view.store.now() : found.to) - found.from);
    const names = { lm: `Iteration ${node.number}: model`, cell: `Cell ${node.number}`, call: `Sub-call ${node.number}` };
    put(this.told, [`${names[found.kind]}, ${took}`, oneLine(node.reply || node.teaser || node.text || "", 120)].filter(Boolean).join(" · "));
    if (go) this.view.show(node);
  }
}
