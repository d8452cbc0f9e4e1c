// The run as the page knows it: records folded into nodes. One store for each model, whatever number of views show it.
//
// A record speaks of branches (RLMs), cells and calls by the numbers that `wire.py` gave them; one that speaks of what is not
// there is left out. Messages are numbered: a gap makes the store ask for everything anew.

const PICTURE = /^[A-Za-z0-9+/]+={0,2}$/;
const PICTURE_TYPES = ["image/png", "image/jpeg"];

class Store {
  constructor(send) {
    this.send = send;
    this.views = new Set();
    this.expected = null;
    this.asked = 0;
    this.applied = 0;
    this.heard = false;
    this.clear();
  }

  clear() {
    this.nodes = [];
    this.dirty = new Set();
    this.root = this.node("root", null);
    this.branches = new Map();
    this.cells = new Map();
    this.calls = new Map();
    this.groups = new Map();
    this.counts = { ok: 0, running: 0, failed: 0 };
    this.childCounts = { ok: 0, running: 0, failed: 0 };
    this.head = {};
    this.totals = { tokens: 0, cost: null, estimated: false, requests: 0 };
    this.depth = 0;
    this.run = null;
    this.end = null;
    this.state = "Starting";
    this.stoppable = false;
    this.offset = 0;
    this.began = 0;
    this.branch(0, this.root, 0);
  }

  node(kind, parent, fields) {
    const node = { id: this.nodes.length, kind, parent, children: [], level: parent ? parent.level + 1 : 0, version: 0, ...fields };
    this.nodes.push(node);
    if (parent) parent.children.push(node);
    this.dirty.add(node);
    return node;
  }

  touch(node) {
    node.version += 1;
    this.dirty.add(node);
  }

  branch(number, node, depth) {
    const branch = { number, node, depth, turns: [], spans: [], turn: null, status: "running", of: 0, began: 0, ended: 0 };
    this.branches.set(number, branch);
    this.depth = Math.max(this.depth, depth);
    return branch;
  }

  // Take one message; true if it was applied.
  take(message) {
    if (!message || typeof message !== "object" || !Array.isArray(message.records)) return false;
    if (message.reset) {
      this.clear();
      for (const view of this.views) view.forget();
    } else if (this.expected !== message.n) {
      if (this.expected === null || message.n > this.expected) this.resync();
      return false;
    }
    this.expected = message.n + 1;
    this.applied += 1;
    if (typeof message.now === "number") this.offset = message.now - performance.now() / 1000;
    if (typeof message.state === "string") this.state = message.state;
    this.stoppable = message.stoppable === true;
    this.heard = this.heard || message.heard === true;
    for (const record of message.records) this.fold(record);
    for (const view of this.views) view.changed();
    this.dirty.clear();
    return true;
  }

  // Take back the words that a cell put out for a picture: it takes their place.
  untell(cell, words) {
    const told = cell.out;
    const siblings = cell.turn.children;
    if (!told || siblings[siblings.length - 1] !== told || !told.text.trimEnd().endsWith(words)) return;
    told.text = told.text.slice(0, told.text.lastIndexOf(words));
    this.touch(told);
    if (told.text.trim()) return;
    siblings.pop();
    told.gone = true;
  }

  resync() {
    const now = performance.now();
    if (this.asked && now - this.asked < 1000) return;
    this.asked = now;
    this.send({ kind: "resync" });
  }

  now() {
    return performance.now() / 1000 + this.offset;
  }

  fold(record) {
    if (record && Object.hasOwn(FOLDS, record.k)) FOLDS[record.k](this, record);
  }

  turnOf(record, branch) {
    for (let place = branch.turns.length - 1; place >= 0; place -= 1) {
      if (branch.turns[place].number === record.i) return branch.turns[place];
    }
    return this.newTurn(record, branch);
  }

  newTurn(record, branch) {
    const turn = this.node("turn", branch.node, {
      number: record.i, branch, at: record.at, seconds: 0, tokens: 0, cost: null, estimated: false, state: "asking",
      counts: { ok: 0, running: 0, failed: 0 }, teaser: "", trouble: "", reply: "", prose: [], pictures: 0,
    }); // prettier-ignore
    if (branch.turn) this.touch(branch.turn);
    branch.turns.push(turn);
    branch.turn = turn;
    return turn;
  }

  spend(branch, record) {
    const total = branch.number === 0 ? [this.totals] : [this.totals, branch.totals];
    for (const sum of total) this.sum(sum, record);
  }

  sum(sum, record) {
    sum.tokens += figure(record.tok);
    sum.estimated = sum.estimated || record.est === true;
    sum.requests = figure(sum.requests) + figure(record.att);
    if (record.cost !== null && record.cost !== undefined) sum.cost = figure(sum.cost) + figure(record.cost);
  }

  // The node under which a cell's calls of one batch stand, or its children.
  group(cell, kind, batch) {
    const key = `${cell.key}/${kind}/${batch}`;
    let group = this.groups.get(key);
    if (!group) {
      group = this.node("group", cell.turn, {
        of: kind, cell, counts: { ok: 0, running: 0, failed: 0 }, at: 0, ended: 0, tokens: 0, cost: null, estimated: false,
      }); // prettier-ignore
      this.groups.set(key, group);
    }
    return group;
  }

  // Count a state of a call or a child wherever it is told.
  turnState(group, before, after) {
    for (const counts of [group.counts, group.cell.turn.counts, group.of === "rlm_query" ? this.childCounts : this.counts]) {
      if (before) counts[before] -= 1;
      counts[after] += 1;
    }
    this.touch(group);
    this.touch(group.cell.turn);
  }

  // Write a reply's prose as leaves: pieces are reused, so that a text that grows stays where it is.
  write(turn, found) {
    found.forEach(([code, text], place) => {
      let leaf = turn.prose[place];
      if (!leaf) {
        leaf = this.node(code ? "draft" : "prose", turn, { text: "" });
        // Prose stands before what came of it.
        turn.children.pop();
        turn.children.splice(place, 0, leaf);
        turn.prose.push(leaf);
      }
      const kind = code ? "draft" : "prose";
      if (leaf.text !== text || leaf.kind !== kind || leaf.streaming !== (turn.state === "asking")) {
        Object.assign(leaf, { kind, text, streaming: turn.state === "asking" });
        this.touch(leaf);
      }
    });
    for (const leaf of turn.prose.splice(found.length)) {
      turn.children.splice(turn.children.indexOf(leaf), 1);
      leaf.gone = true;
    }
    const prose = found.find(([code]) => !code) || found[0];
    turn.teaser = prose ? teaser(prose[1]) : turn.teaser;
    this.touch(turn);
  }
}

const FOLDS = {
  run(store, record) {
    store.run = record;
    store.began = figure(record.at);
    store.branches.get(0).began = store.began;
    if (record.settings) store.head = record.settings;
  },
  turn(store, record) {
    const branch = store.branches.get(record.b);
    if (!branch) return;
    branch.of = record.of;
    if (branch.turn) branch.turn.state = "ended";
    store.newTurn(record, branch);
  },
  part(store, record) {
    const branch = store.branches.get(record.b);
    if (!branch) return;
    const turn = store.turnOf(record, branch);
    if (turn.state !== "asking") return;
    turn.reply += record.t;
    store.write(turn, pieces(turn.reply));
  },
  restart(store, record) {
    const branch = store.branches.get(record.b);
    if (!branch) return;
    const turn = store.turnOf(record, branch);
    turn.reply = "";
    store.write(turn, []);
  },
  reply(store, record) {
    const branch = store.branches.get(record.b);
    if (!branch) return;
    const turn = store.turnOf(record, branch);
    Object.assign(turn, { state: "running", seconds: figure(record.s), reply: "" });
    store.sum(turn, record);
    store.spend(branch, record);
    branch.spans.push({ kind: "lm", from: record.at - figure(record.s), to: record.at, node: turn });
    store.write(turn, record.pieces || []);
  },
  prose(store, record) {
    const branch = store.branches.get(record.b);
    if (branch) store.write(store.turnOf(record, branch), record.pieces || []);
  },
  cell(store, record) {
    const branch = store.branches.get(record.b);
    if (!branch) return;
    const turn = store.turnOf(record, branch);
    if (turn.number === 0) turn.teaser = turn.teaser || "set-up code";
    const key = `${record.b}/${record.c}`;
    const code = store.node("code", turn, { text: record.code, number: record.c, status: "running", error: "", at: record.at, seconds: 0 });
    const span = { kind: "cell", from: record.at, to: null, node: code };
    branch.spans.push(span);
    store.cells.set(key, { key, turn, branch, code, span, out: null, branchNumber: record.b });
    if (!turn.teaser) turn.teaser = teaser(record.code);
    store.touch(turn);
  },
  out(store, record) {
    const cell = store.cells.get(`${record.b}/${record.c}`);
    if (!cell) return;
    const last = cell.out;
    const siblings = cell.turn.children;
    if (last && last.bad === record.bad && last.failed === (record.err === true) && siblings[siblings.length - 1] === last && last.text.length < 400000) {
      last.text += record.t;
      store.touch(last);
      return;
    }
    cell.out = store.node("out", cell.turn, { text: record.t, bad: record.bad, failed: record.err === true });
    store.touch(cell.turn);
  },
  pic(store, record) {
    const cell = store.cells.get(`${record.b}/${record.c}`);
    if (!cell) return;
    const good = PICTURE_TYPES.includes(record.type) && typeof record.data === "string" && PICTURE.test(record.data);
    store.untell(cell, `[a picture of ${record.w}x${record.h}]`);
    store.node("pic", cell.turn, {
      text: record.told, source: good ? `data:${record.type};base64,${record.data}` : "",
      width: figure(record.w), height: figure(record.h),
    }); // prettier-ignore
    cell.out = null;
    cell.turn.pictures += 1;
    store.touch(cell.turn);
  },
  done(store, record) {
    const cell = store.cells.get(`${record.b}/${record.c}`);
    if (!cell) return;
    const { status, error } = record;
    Object.assign(cell.code, { status, error, seconds: figure(record.s), omitted: record.omitted || "" });
    cell.span.to = record.at;
    cell.turn.seconds += figure(record.s);
    if (status !== "ok" && !cell.turn.trouble) cell.turn.trouble = error || status;
    cell.code.bad = cell.code.failed = status !== "ok";
    store.touch(cell.code);
    store.touch(cell.turn);
  },
  call(store, record) {
    const cell = store.cells.get(`${record.b}/${record.c}`);
    if (!cell) return;
    const group = store.group(cell, "llm_query", record.g);
    const call = store.node("call", group, {
      state: "running", model: record.m, at: record.at, seconds: 0, tokens: null, cost: null, attempts: 0, retries: 0,
      number: group.children.length + 1, teaser: oneLine(record.p, 160), branch: cell.branch,
    }); // prettier-ignore
    call.prompt = store.node("text", call, { name: "prompt", text: record.p });
    group.at = group.at || record.at;
    store.calls.set(record.id, { call, group, branch: cell.branch });
    call.span = { kind: "call", from: record.at, to: null, node: call };
    cell.branch.spans.push(call.span);
    store.turnState(group, null, "running");
  },
  got(store, record) {
    const found = store.calls.get(record.id);
    if (!found) return;
    const { call, group, branch } = found;
    if (call.state !== "running") return;
    const state = record.e ? "failed" : "ok";
    Object.assign(call, {
      state, seconds: figure(record.s), tokens: figure(record.tok), estimated: record.est === true,
      cost: record.cost, attempts: figure(record.att), bad: state === "failed", failed: state === "failed",
    }); // prettier-ignore
    if (record.r || !record.e) store.node("text", call, { name: "reply", text: record.r });
    if (record.e) store.node("text", call, { name: "error", text: record.e, bad: true, failed: true });
    call.reply = oneLine(record.e || record.r, 160);
    call.span.to = record.at;
    group.ended = record.at;
    store.sum(group, record);
    store.sum(group.cell.turn, record);
    store.spend(branch, record);
    store.touch(call);
    store.turnState(group, "running", state);
  },
  child(store, record) {
    const cell = store.cells.get(`${record.b}/${record.c}`);
    if (!cell) return;
    const group = store.group(cell, "rlm_query", record.g);
    const child = store.node("child", group, {
      state: "running", model: record.m, at: record.at, seconds: 0, number: group.children.length + 1,
      teaser: oneLine(record.q, 160), status: "running", tokens: 0, cost: null, estimated: false,
    }); // prettier-ignore
    const branch = store.branch(record.id, child, cell.branch.depth + 1);
    branch.began = record.at;
    branch.totals = child;
    branch.group = group;
    branch.span = { kind: "child", from: record.at, to: null, node: child };
    group.at = group.at || record.at;
    store.node("text", child, { name: record.ctx ? `question, context ${record.ctx}` : "question", text: record.q });
    store.turnState(group, null, "running");
  },
  ended(store, record) {
    const branch = store.branches.get(record.b);
    if (!branch || branch.number === 0 || branch.status !== "running") return;
    const child = branch.node;
    const state = record.good ? "ok" : "failed";
    branch.status = record.status;
    Object.assign(child, {
      state, status: record.status, seconds: figure(record.s), tokens: figure(record.tok), estimated: record.est === true,
      cost: record.cost, bad: state === "failed", failed: state === "failed",
    }); // prettier-ignore
    if (branch.turn) branch.turn.state = "ended";
    if (record.answer) store.node("text", child, { name: "answer", text: record.answer });
    if (record.error) store.node("text", child, { name: "error", text: record.error, bad: true, failed: true });
    child.reply = oneLine(record.answer || record.error || "", 160);
    branch.span.to = branch.ended = record.at;
    branch.group.ended = record.at;
    store.sum(branch.group, record);
    store.sum(branch.group.cell.turn, record);
    store.touch(child);
    store.turnState(branch.group, "running", state);
  },
  retry(store, record) {
    const found = store.calls.get(record.id);
    if (found) {
      found.call.retries += 1;
      store.touch(found.call);
    }
    const branch = store.branches.get(record.b);
    const under = found ? found.call : branch && (branch.turn || branch.node);
    if (under) store.node("notice", under, { text: record.t });
  },
  notice(store, record) {
    const branch = store.branches.get(record.b);
    if (branch) store.node("notice", branch.turn || branch.node, { text: record.t });
  },
  end(store, record) {
    store.end = record;
    Object.assign(store.totals, { tokens: figure(record.tok), estimated: record.est === true, cost: record.cost });
    const branch = store.branches.get(0);
    branch.status = record.status;
    branch.ended = record.at;
    if (branch.turn) branch.turn.state = "ended";
    for (const { call, group } of store.calls.values()) {
      if (call.state === "running") store.touch(group);
    }
  },
};
