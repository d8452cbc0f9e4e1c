// The tree as a list of rows of which only those near the window are on the page, however many there are.
//
// A row is a treeitem of the WAI-ARIA tree pattern: one of them has the focus and the tab stop. Heights are estimated until a
// row has been drawn, then measured; what changes above the window moves nothing in it.

const OVERSCAN = 300;
const LINE = 19;
const FOLDED_LINES = 24;
const FOLDED_CHARACTERS = 4000;
const WHOLE_CHARACTERS = 120000;
const BLOCKS = new Set(["prose", "draft", "code", "out", "text", "pic", "notice"]);
const NAMES = { prose: "Reasoning", draft: "Code", code: "Code", out: "Output", notice: "Notice", pic: "Picture" };

function isBlock(node) {
  return BLOCKS.has(node.kind);
}

class Rows {
  constructor(view) {
    this.view = view;
    this.list = element("div", "rlm-tree");
    this.list.setAttribute("role", "tree");
    this.list.setAttribute("aria-label", "Iterations, code, output and sub-calls");
    this.above = element("div");
    this.below = element("div");
    for (const spacer of [this.above, this.below]) spacer.setAttribute("role", "presentation");
    this.list.append(this.above, this.below);
    this.empty = element("div", "rlm-empty");
    this.rows = [];
    this.facts = [];
    this.places = new Int32Array(0);
    this.sizes = new Float64Array(0);
    this.tops = new Float64Array(1);
    this.heights = [];
    this.drawn = new Map();
    this.current = null;
    this.whole = new Set();
    this.follow = true;
    this.list.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.list.addEventListener("click", (event) => this.clicked(event));
    this.list.addEventListener("keydown", (event) => this.key(event));
    this.list.addEventListener("focusin", (event) => this.focused(event));
  }

  forget() {
    this.heights = [];
    for (const row of this.drawn.values()) row.remove();
    this.drawn.clear();
    this.current = null;
    this.rows = [];
    this.places = new Int32Array(0);
    this.follow = true;
  }

  // Which rows there are, in order. A group of one is not a row: its only child stands in its place.
  flatten() {
    const { view } = this;
    const rows = [];
    const facts = [];
    const walk = (children, level) => {
      const shown = [];
      for (const child of children) {
        const node = child.kind === "group" && child.children.length === 1 ? child.children[0] : child;
        if (view.isShown(node)) shown.push(node);
      }
      for (let index = 0; index < shown.length; index += 1) {
        const node = shown[index];
        rows.push(node);
        facts.push(level, index + 1, shown.length);
        if (node.children.length && view.isOpen(node)) walk(node.children, level + 1);
      }
    };
    walk(view.store.root.children, 1);
    this.rows = rows;
    this.facts = facts;
    this.places = new Int32Array(view.store.nodes.length).fill(-1);
    this.sizes = new Float64Array(rows.length);
    rows.forEach((node, index) => {
      this.places[node.id] = index;
      this.sizes[index] = this.height(node);
    });
    this.tops = new Float64Array(rows.length + 1);
    this.layout(0);
    if (this.current && this.place(this.current) < 0) this.current = this.nearest(this.current);
    if (!this.current) this.current = rows[0] || null;
  }

  place(node) {
    const found = this.places[node.id];
    return found === undefined ? -1 : found;
  }

  nearest(node) {
    for (let above = node.parent; above; above = above.parent) if (this.place(above) >= 0) return above;
    return null;
  }

  estimate(node) {
    if (!isBlock(node)) return 28;
    if (node.kind === "notice") return 32;
    if (node.kind === "pic") return node.source ? Math.min(node.height, 420) + 40 : 48;
    return 34 + Math.min(FOLDED_LINES, 1 + Math.floor(node.text.length / 80)) * LINE;
  }

  height(node) {
    const known = this.heights[node.id];
    return known === undefined ? this.estimate(node) : known;
  }

  // Where each row begins, anew from the row `from` on.
  layout(from) {
    const { tops, sizes } = this;
    for (let index = from; index < sizes.length; index += 1) tops[index + 1] = tops[index] + sizes[index];
  }

  at(offset) {
    let low = 0;
    let high = this.rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.tops[middle] <= offset) low = middle;
      else high = middle - 1;
    }
    return Math.max(low, 0);
  }

  // Draw the rows near the window. Called in an animation frame only.
  draw(restructured) {
    const { list } = this;
    const before = list.scrollTop;
    const room = this.room();
    const held = this.rows.length ? this.at(before) : -1;
    const anchor = held < 0 ? null : { node: this.rows[held], inside: before - this.tops[held] };
    if (restructured) this.flatten();
    let top = before;
    if (anchor && this.place(anchor.node) >= 0) top = this.tops[this.place(anchor.node)] + anchor.inside;
    const follow = this.follow && this.view.running();
    for (let round = 0; round < 3; round += 1) {
      const highest = this.tops[this.rows.length] - room;
      top = Math.max(0, follow ? highest : Math.min(top, highest));
      const first = this.at(top - OVERSCAN);
      const last = Math.min(this.at(top + room + OVERSCAN), this.rows.length - 1);
      this.show(first, last);
      const index = this.at(top);
      const inside = top - this.tops[index];
      if (!this.measure(first, last)) break;
      top = this.tops[index] + inside;
      this.above.style.height = `${this.tops[first]}px`;
    }
    top = Math.max(0, Math.min(top, this.tops[this.rows.length] - room));
    if (Math.abs(before - top) > 1 || restructured) {
      this.moving = Math.abs(list.scrollTop - top) > 1;
      if (this.moving) list.scrollTop = top;
    }
    this.empty.hidden = this.rows.length > 0;
  }

  room() {
    return this.list.clientHeight || 400;
  }

  show(first, last) {
    const wanted = new Set();
    for (let index = first; index <= last && index < this.rows.length; index += 1) wanted.add(this.rows[index]);
    const focus = this.list.ownerDocument.activeElement;
    const held = focus && this.drawn.get(this.current) === focus;
    for (const [node, row] of this.drawn) {
      if (!wanted.has(node)) {
        // The row that has the focus stays on the page when it is scrolled away, or the keyboard would be lost.
        if (held && node === this.current && this.place(node) >= 0) continue;
        row.remove();
        this.drawn.delete(node);
      }
    }
    const kept = held && !wanted.has(this.current) ? this.drawn.get(this.current) : null;
    let next = this.above.nextSibling;
    for (const node of wanted) {
      let row = this.drawn.get(node);
      if (!row) {
        row = this.make(node);
        this.drawn.set(node, row);
      }
      if (next === kept && kept) next = next.nextSibling;
      if (row !== next) this.list.insertBefore(row, next);
      else next = next.nextSibling;
      row.classList.remove("rlm-kept");
      this.update(row, node);
    }
    if (kept) kept.classList.add("rlm-kept");
    else if (held && focus !== this.list.ownerDocument.activeElement) focus.focus({ preventScroll: true });
    const shown = Math.min(last + 1, this.rows.length);
    this.above.style.height = `${this.tops[first] || 0}px`;
    this.below.style.height = `${Math.max(this.tops[this.rows.length] - this.tops[shown], 0)}px`;
  }

  // Measure what is drawn; true if anything is of another height than was thought.
  measure(first, last) {
    let moved = -1;
    for (let index = last; index >= first; index -= 1) {
      const node = this.rows[index];
      const height = this.drawn.get(node).offsetHeight;
      if (!height) continue;
      if (Math.abs(height - this.sizes[index]) > 0.5) {
        this.sizes[index] = height;
        moved = index;
      }
      this.heights[node.id] = height;
    }
    if (moved >= 0) this.layout(moved);
    return moved >= 0;
  }

  make(node) {
    const row = element("div", "rlm-row");
    row.rlmNode = node;
    row.id = `${this.view.id}-${node.id}`;
    row.setAttribute("role", "treeitem");
    row.setAttribute("data-lm-suppress-shortcuts", "true"); // or JupyterLab and Notebook 7 take the arrow keys for their cells
    if (isBlock(node)) makeBlock(row, node);
    else makeLine(row);
    return row;
  }

  update(row, node) {
    const open = node.children.length && !isBlock(node) ? String(this.view.isOpen(node)) : null;
    const at = 3 * this.place(node);
    const [level, index, siblings] = this.facts.slice(at, at + 3);
    const whole = this.whole.has(node);
    const key = [node.version, level, index, siblings, open, whole, node === this.current, this.view.query].join();
    if (row.rlmKey === key) return;
    row.rlmKey = key;
    row.style.setProperty("--rlm-level", String(Math.min(level, 12)));
    row.tabIndex = node === this.current ? 0 : -1;
    row.setAttribute("aria-level", String(level));
    row.setAttribute("aria-posinset", String(index));
    row.setAttribute("aria-setsize", String(siblings));
    if (open === null) row.removeAttribute("aria-expanded");
    else row.setAttribute("aria-expanded", open);
    row.setAttribute("aria-selected", String(node === this.current));
    row.className = `rlm-row rlm-${node.kind}${isBlock(node) ? " rlm-block" : " rlm-line"}${node.bad ? " rlm-bad" : ""}`;
    if (isBlock(node)) updateBlock(row, node, this.view, whole);
    else updateLine(row, node, this.view);
  }

  // Write the figures that tick, of the rows that run and are on the page.
  tick() {
    for (const [node, row] of this.drawn) if (!isBlock(node)) put(row.rlmTime, timeOf(node, this.view.store));
  }

  scrolled() {
    const { list } = this;
    if (this.moving) this.moving = false;
    else this.follow = list.scrollTop + list.clientHeight >= list.scrollHeight - 24;
    this.view.schedule();
  }

  owner(event) {
    const row = event.target.closest(".rlm-row");
    return row && this.list.contains(row) ? row.rlmNode : null;
  }

  clicked(event) {
    const node = this.owner(event);
    if (!node) return;
    const button = event.target.closest("button");
    if (button) {
      if (button.rlmDoes === "copy") this.view.copied(node, button);
      else this.unfold(node);
      return;
    }
    this.select(node, false);
    if (!isBlock(node) && node.children.length) this.view.toggle(node);
  }

  unfold(node) {
    if (!this.whole.delete(node)) this.whole.add(node);
    this.follow = false;
    this.view.schedule();
  }

  focused(event) {
    const node = this.owner(event);
    if (node && node !== this.current) this.select(node, false);
  }

  // Make `node` the row that has the tab stop; `focus` moves the keyboard and the window there.
  select(node, focus) {
    this.current = node;
    if (focus) {
      this.follow = false;
      this.reveal(node);
      this.draw(false);
      const row = this.drawn.get(node);
      if (row) row.focus({ preventScroll: true });
    }
    this.view.schedule();
  }

  reveal(node) {
    const index = this.place(node);
    if (index < 0) return;
    const { list } = this;
    const [top, bottom] = [this.tops[index], this.tops[index + 1]];
    const room = this.room();
    if (top < list.scrollTop || bottom - top > room) list.scrollTop = top;
    else if (bottom > list.scrollTop + room) list.scrollTop = bottom - room;
    else return;
    this.moving = true;
  }

  key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (this.view.restructured) this.view.draw();
    const node = this.current;
    if (!node || event.target.closest("button")) return;
    const index = this.place(node);
    const container = !isBlock(node) && node.children.length > 0;
    const go = (to) => to && this.select(to, true);
    switch (event.key) {
      case "ArrowDown":
        go(this.rows[index + 1]);
        break;
      case "ArrowUp":
        go(this.rows[index - 1]);
        break;
      case "Home":
        go(this.rows[0]);
        break;
      case "End":
        go(this.rows[this.rows.length - 1]);
        break;
      case "PageDown":
        go(this.rows[Math.min(this.rows.length - 1, Math.max(this.at(this.tops[index] + this.room()), index + 1))]);
        break;
      case "PageUp":
        go(this.rows[Math.max(0, Math.min(this.at(this.tops[index] - this.room()), index - 1))]);
        break;
      case "ArrowRight":
        if (container && !this.view.isOpen(node)) this.view.toggle(node);
        else if (container) go(this.rows[index + 1]);
        break;
      case "ArrowLeft":
        if (container && this.view.isOpen(node)) this.view.toggle(node);
        else go(this.nearest(node));
        break;
      case "Enter":
      case " ":
        if (container) this.view.toggle(node);
        else if (isBlock(node)) this.unfold(node);
        break;
      case "*":
        this.view.expandSiblings(node);
        break;
      case "c":
        this.view.copied(node, null);
        break;
      default:
        return;
    }
    event.preventDefault();
    event.stopPropagation();
  }
}
