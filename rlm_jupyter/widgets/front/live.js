// One run, live: the view that anywidget draws. `wire.py` makes what comes in, `store.js` folds it, `rows.js` draws the tree.

// By the name of the run's widget: anywidget gives each view, and `initialize`, a model object of its own.
const STORES = new Map();
let views = 0;

function storeOf(model) {
  const name = model.get("name");
  let store = STORES.get(name);
  if (!store) {
    store = new Store((message) => model.send(message));
    STORES.set(name, store);
    model.on("msg:custom", (message) => store.take(message));
  }
  return store;
}

class View {
  constructor(store, host) {
    this.store = store;
    this.id = `rlm${(views += 1)}-${Math.random().toString(36).slice(2, 8)}`;
    this.query = "";
    this.failed = false;
    this.all = false;
    this.shown = null;
    this.above = new Set();
    this.restructured = true;
    this.rows = new Rows(this);
    this.timeline = new Timeline(this);
    this.build();
    host.append(this.root);
    store.views.add(this);
    this.watchTheme();
    this.resized = new ResizeObserver(() => this.wide());
    this.resized.observe(this.root);
    this.ticking = setInterval(() => this.tick(), 500);
    this.changed();
  }

  close() {
    this.store.views.delete(this);
    this.resized.disconnect();
    this.themed.disconnect();
    clearInterval(this.ticking);
    this.timeline.close();
    this.root.remove();
  }

  build() {
    this.root = element("section", "rlm-live mathjax_ignore tex2jax_ignore");
    this.root.setAttribute("aria-label", "Recursive run");
    const top = element("div", "rlm-top");
    this.word = element("span", "rlm-word");
    this.word.setAttribute("role", "status");
    this.facts = element("span", "rlm-progress");
    this.figures = {};
    const figures = element("span", "rlm-figures");
    for (const name of ["time", "tokens", "cost"]) {
      this.figures[name] = element("span", `rlm-total rlm-total-${name}`);
      figures.append(this.figures[name]);
    }
    this.stop = this.button("Stop", "rlm-stop", () => this.stopped());
    this.stop.hidden = true;
    const right = element("span", "rlm-right");
    right.append(figures, this.stop);
    top.append(this.word, this.facts, right);
    this.question = element("div", "rlm-question");
    this.question.dir = "auto";
    this.opening = element("div", "rlm-opening");
    this.answer = element("div", "rlm-answer");
    this.answer.hidden = true;
    this.tools = this.toolbar();
    this.rows.empty.textContent = "Nothing yet.";
    this.root.append(top, this.question, this.opening, this.answer, this.tools, this.timeline.box, this.rows.list, this.rows.empty);
  }

  button(words, name, does) {
    const button = element("button", `rlm-button ${name}`, words);
    button.type = "button";
    button.addEventListener("click", does);
    return button;
  }

  toolbar() {
    const tools = element("div", "rlm-tools");
    this.search = element("input", "rlm-search");
    this.search.type = "search";
    this.search.placeholder = "Search";
    this.search.setAttribute("aria-label", "Search in the run");
    this.search.addEventListener("input", () => this.searched());
    // A notebook has keys of its own for nearly every letter: those typed here are for us.
    for (const kind of ["keydown", "keypress", "keyup"]) this.search.addEventListener(kind, (event) => this.typed(event));
    this.found = element("span", "rlm-found");
    this.found.setAttribute("role", "status");
    this.onlyFailed = this.button("Failed", "rlm-only", () => this.filterFailed());
    this.onlyFailed.setAttribute("aria-pressed", "false");
    this.onlyFailed.title = "Show only what failed";
    this.expand = this.button("Expand all", "rlm-expand", () => this.expandAll());
    this.time = this.button("Timeline", "rlm-when", () => this.flip());
    this.time.setAttribute("aria-pressed", "false");
    tools.append(this.search, this.found, this.onlyFailed, this.expand, this.time);
    return tools;
  }

  // Light or dark is told by the ink that the front end gives us, whatever it calls its themes.
  watchTheme() {
    this.look = () => {
      const [red, green, blue] = (getComputedStyle(this.root).color.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
      this.root.classList.toggle("rlm-dark", 0.3 * red + 0.6 * green + 0.1 * blue > 128);
      this.timeline.draw();
    };
    this.themed = new MutationObserver(() => this.look());
    for (const node of [document.documentElement, document.body]) {
      this.themed.observe(node, { attributes: true, attributeFilter: ["class", "data-jp-theme-name", "data-jp-theme-light", "theme", "style"] });
    }
    this.look();
  }

  running() {
    return this.store.end === null;
  }

  wide() {
    const width = this.root.clientWidth;
    if (width && this.width !== width) {
      this.width = width;
      this.root.classList.toggle("rlm-narrow", width < 560);
      this.look(); // a front end may draw a view before it puts it on the page, where it has no ink
      this.rows.heights = [];
      this.restructured = true;
      this.schedule();
    }
  }

  forget() {
    this.rows.forget();
    this.shown = this.query || this.failed ? new Set() : null;
    this.above = new Set();
    this.restructured = true;
  }

  changed() {
    this.restructured = true;
    if (this.shown) this.match(this.store.dirty);
    this.schedule();
  }

  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const restructured = this.restructured;
    this.restructured = false;
    if (restructured) this.head();
    this.rows.draw(restructured);
    if (restructured) this.timeline.changed();
  }

  tick() {
    if (!this.running()) return;
    this.ticked();
    this.rows.tick();
    this.timeline.changed();
  }

  ticked() {
    const { store } = this;
    if (store.run) put(this.figures.time, store.end ? duration(store.end.s) : clock(store.now() - store.began));
  }

  head() {
    const { store } = this;
    put(this.word, store.state);
    this.root.dataset.tone = store.end ? store.end.tone : "running";
    put(this.facts, this.progress().join(" · "));
    this.ticked();
    put(this.figures.tokens, store.run ? `${tokens(store.totals.tokens, store.totals.estimated)} tokens` : "");
    put(this.figures.cost, store.run ? this.spent() : "");
    this.stop.hidden = !(this.running() && store.stoppable);
    const run = store.run || {};
    put(this.question, run.q || "");
    put(this.opening, (run.told || []).join(" · "));
    this.opening.hidden = store.branches.get(0).turns.length > 0;
    this.tools.hidden = store.root.children.length === 0;
    const { failed } = store.counts;
    put(this.onlyFailed, failed + store.childCounts.failed ? `Failed ${grouped(failed + store.childCounts.failed)}` : "Failed");
    this.answered();
  }

  spent() {
    const { totals, run } = this.store;
    if (totals.cost === null && totals.requests > 0) return "no price known";
    return money(totals.cost || 0, totals.estimated) + (run.max_cost ? ` of ${dollars(run.max_cost)}` : "");
  }

  progress() {
    const { store } = this;
    const root = store.branches.get(0);
    const facts = [];
    if (root.turn) {
      const number = root.turn.number;
      facts.push(number === 0 ? "set-up code" : root.of ? `iteration ${grouped(number)} of ${grouped(root.of)}` : `iteration ${grouped(number)}`);
    }
    const calls = states(store.counts);
    if (calls) facts.push(`sub-calls ${calls}`);
    const children = states(store.childCounts);
    if (children) facts.push(`child RLMs ${children}`, `depth ${store.depth}`);
    return facts;
  }

  answered() {
    const { end } = this.store;
    const known = Boolean(end && (end.answer || end.error || end.note));
    this.answer.hidden = !known;
    if (!known || this.answer.firstChild) return;
    const add = (name, text) => {
      if (!text) return;
      const part = element("div", name, text);
      part.dir = "auto";
      this.answer.append(part);
    };
    add("rlm-answer-text", end.answer);
    add("rlm-answer-error", end.error);
    add("rlm-answer-note", end.note);
  }

  isOpen(node) {
    if (this.shown && this.above.has(node)) return node.closed !== this.shown;
    if (node.open !== undefined) return node.open;
    if (node.kind === "turn") return this.all || node.branch.turn === node;
    return this.all;
  }

  isShown(node) {
    return this.shown === null || this.shown.has(node) || this.above.has(node);
  }

  toggle(node) {
    const open = this.isOpen(node);
    if (this.shown && this.above.has(node)) node.closed = open ? this.shown : null;
    else node.open = !open;
    this.rows.follow = false;
    this.rows.draw(true);
  }

  expandSiblings(node) {
    for (const sibling of node.parent.children) if (sibling.children.length) sibling.open = true;
    this.rows.draw(true);
  }

  expandAll() {
    this.all = !this.all;
    for (const node of this.store.nodes) node.open = undefined;
    put(this.expand, this.all ? "Collapse" : "Expand all");
    this.rows.follow = false;
    this.restructured = true;
    this.schedule();
  }

  flip() {
    const { box } = this.timeline;
    box.hidden = !box.hidden;
    this.time.setAttribute("aria-pressed", String(!box.hidden));
    this.timeline.draw();
  }

  // Open everything above `node` and go there.
  show(node) {
    if (this.shown) this.unfilter();
    for (let above = node; above; above = above.parent) if (above.children.length) above.open = true;
    this.rows.follow = false;
    this.rows.draw(true);
    if (this.rows.place(node) >= 0) this.rows.select(node, true);
  }

  typed(event) {
    event.stopPropagation();
    if (event.type !== "keydown") return;
    if (event.key === "Escape") this.unfilter();
    if (event.key === "ArrowDown" && this.rows.current) {
      event.preventDefault();
      this.rows.select(this.rows.current, true);
    }
  }

  searched() {
    clearTimeout(this.searching);
    this.searching = setTimeout(() => this.filter(this.search.value.trim().toLowerCase(), this.failed), 120);
  }

  filterFailed() {
    this.filter(this.query, !this.failed);
  }

  unfilter() {
    this.search.value = "";
    this.filter("", false);
  }

  filter(query, failed) {
    this.query = query;
    this.failed = failed;
    this.onlyFailed.setAttribute("aria-pressed", String(failed));
    const active = Boolean(query || failed);
    this.shown = active ? new Set() : null;
    this.above = new Set();
    this.rows.follow = false;
    cancelIdle(this.scanning);
    if (active) this.scan(this.store.nodes, 0, this.shown);
    else put(this.found, "");
    this.restructured = true;
    this.schedule();
  }

  // Look through the nodes in slices, so that a long run does not hold up the page.
  scan(nodes, from, shown) {
    if (this.shown !== shown) return;
    const until = performance.now() + 12;
    let at = from;
    while (at < nodes.length && performance.now() < until) {
      this.test(nodes[at]);
      at += 1;
    }
    this.restructured = true;
    this.schedule();
    put(this.found, `${grouped(this.shown.size)} found`);
    if (at < nodes.length) this.scanning = setTimeout(() => this.scan(nodes, at, shown), 0);
  }

  match(nodes) {
    for (const node of nodes) this.test(node);
    put(this.found, `${grouped(this.shown.size)} found`);
  }

  test(node) {
    if (node.kind === "root" || node.kind === "group" || node.gone) return;
    if (this.failed && !node.failed) return;
    if (this.query) {
      const text = isBlock(node) ? `${node.text}\n${node.error || ""}` : node.kind === "call" || node.kind === "child" ? node.model : "";
      if (!text.toLowerCase().includes(this.query)) return;
    }
    this.shown.add(node);
    for (let above = node.parent; above && !this.above.has(above); above = above.parent) this.above.add(above);
  }

  async copied(node, button) {
    const text = isBlock(node) ? node.text : node.prompt ? node.prompt.text : node.teaser || "";
    const done = await copy(text, this.root);
    if (!button) return;
    put(button, done ? "Copied" : "Not copied");
    setTimeout(() => put(button, "Copy"), 1200);
  }

  stopped() {
    this.store.send({ kind: "stop" });
    put(this.stop, "Stopping");
    this.stop.disabled = true;
  }
}

function cancelIdle(handle) {
  if (handle) clearTimeout(handle);
}

export default {
  initialize({ model }) {
    const store = storeOf(model);
    // What is said before the front end has opened a way round the busy cell is heard too late: say it until it was heard.
    let waits = 0;
    const ask = () => {
      if (store.heard || waits > 12) return;
      store.send({ kind: "ready", has: store.applied > 0 });
      waits += 1;
      setTimeout(ask, Math.min(60 * 1.7 ** waits, 5000));
    };
    ask();
    return () => STORES.delete(model.get("name"));
  },
  render({ model, el }) {
    const view = new View(storeOf(model), el);
    return () => view.close();
  },
};

export { Store, View, count, duration, dollars, highlight, pieces, teaser };
