// What one row shows: a line (iteration, batch, call, child) with aligned figures, or a block (text, code, output, picture).

function makeLine(row) {
  const twisty = element("span", "rlm-twisty");
  twisty.setAttribute("aria-hidden", "true");
  row.rlmLabel = element("span", "rlm-label");
  row.rlmTeaser = element("span", "rlm-teaser");
  row.rlmTeaser.dir = "auto";
  const words = element("span", "rlm-words");
  row.rlmBar = element("span", "rlm-bar");
  row.rlmBar.setAttribute("aria-hidden", "true");
  row.rlmBar.append(element("span", "rlm-done"), element("span", "rlm-lost"));
  row.rlmReply = element("span", "rlm-reply");
  row.rlmReply.dir = "auto";
  words.append(row.rlmLabel, row.rlmBar, row.rlmTeaser, row.rlmReply);
  row.rlmState = element("span", "rlm-state");
  row.rlmTokens = element("span", "rlm-figure rlm-tokens");
  row.rlmCost = element("span", "rlm-figure rlm-cost");
  row.rlmTime = element("span", "rlm-figure rlm-time");
  row.append(twisty, words, row.rlmState, row.rlmTokens, row.rlmCost, row.rlmTime);
}

function timeOf(node, store) {
  if (node.kind === "turn") {
    const branch = node.branch;
    if (branch.turn === node && branch.status === "running" && !store.end) return clock(store.now() - node.at);
    return node.seconds ? duration(node.seconds) : "";
  }
  if (node.kind === "group") {
    if (node.counts.running && !store.end) return clock(store.now() - node.at);
    return node.ended ? duration(node.ended - node.at) : "";
  }
  if (node.state === "running") return store.end ? "" : clock(store.now() - node.at);
  return duration(node.seconds);
}

function labelOf(node, open) {
  if (node.kind === "turn") return node.number === 0 ? "set-up" : open ? `Iteration ${node.number}` : String(node.number);
  if (node.kind === "group") return `${grouped(node.children.length)} × ${node.of}`;
  if (node.parent.children.length > 1) return `${node.number}`;
  return node.kind === "child" ? "rlm_query" : "llm_query";
}

function stateOf(node) {
  if (node.kind === "turn") return node.trouble ? oneLine(node.trouble, 60) : states(node.counts);
  if (node.kind === "group") return states(node.counts);
  const more = node.attempts > 1 ? count(node.attempts, "attempt") : node.retries ? count(node.retries, "retry") : "";
  const word = node.kind === "child" && node.state !== "running" ? node.status : node.state;
  return [word, more].filter(Boolean).join(", ");
}

function teaserOf(node) {
  if (node.kind === "turn") return node.teaser || (node.state === "asking" ? "asking the model" : "an empty reply");
  if (node.kind === "group") return "";
  return node.teaser;
}

function updateLine(row, node, view) {
  // What is open says itself what it is about.
  const open = node.kind === "turn" && node.prose.length > 0 && view.isOpen(node);
  put(row.rlmLabel, labelOf(node, open));
  put(row.rlmTeaser, open ? "" : teaserOf(node));
  const reply = node.kind === "turn" ? "" : node.reply || "";
  put(row.rlmReply, reply);
  row.rlmReply.hidden = !reply;
  put(row.rlmState, stateOf(node));
  row.rlmState.classList.toggle("rlm-wrong", Boolean(node.trouble || node.bad || (node.kind === "group" && node.counts.failed)));
  put(row.rlmTokens, node.tokens ? `${tokens(node.tokens, node.estimated)}` : "");
  put(row.rlmCost, money(node.cost, node.estimated));
  put(row.rlmTime, timeOf(node, view.store));
  row.rlmBar.hidden = node.kind !== "group";
  if (node.kind === "group") {
    const whole = node.children.length;
    row.rlmBar.children[0].style.width = `${(100 * node.counts.ok) / whole}%`;
    row.rlmBar.children[1].style.width = `${(100 * node.counts.failed) / whole}%`;
  }
  const kinds = { turn: "Iteration", group: "Batch", call: "Sub-call", child: "Child RLM" };
  const facts = [row.rlmTokens.textContent && `${row.rlmTokens.textContent} tokens`, row.rlmCost.textContent];
  const seconds = node.state === "running" ? "" : row.rlmTime.textContent;
  const told = [`${kinds[node.kind]} ${labelOf(node, false)}`, oneLine(teaserOf(node), 120), oneLine(reply, 120), stateOf(node), ...facts, seconds];
  row.setAttribute("aria-label", told.filter(Boolean).join(", "));
}

function makeBlock(row, node) {
  const cap = element("div", "rlm-cap");
  row.rlmName = element("span", "rlm-name");
  row.rlmName.id = `${row.id}-name`;
  row.rlmFacts = element("span", "rlm-facts");
  row.rlmCopy = element("button", "rlm-copy", "Copy");
  row.rlmCopy.type = "button";
  row.rlmCopy.tabIndex = -1;
  row.rlmCopy.rlmDoes = "copy";
  cap.append(row.rlmName, row.rlmFacts, row.rlmCopy);
  row.rlmBody = element(node.kind === "code" || node.kind === "draft" || node.kind === "out" ? "pre" : "div", "rlm-body");
  row.rlmBody.dir = "auto";
  row.rlmBody.id = `${row.id}-body`;
  row.rlmMore = element("button", "rlm-more");
  row.rlmMore.type = "button";
  row.rlmMore.tabIndex = -1;
  row.append(cap, row.rlmBody, row.rlmMore);
  row.setAttribute("aria-labelledby", row.rlmName.id);
  row.setAttribute("aria-describedby", row.rlmBody.id);
}

function nameOf(node) {
  if (node.kind === "text") return node.name[0].toUpperCase() + node.name.slice(1);
  if (node.kind === "out" && node.bad) return "Error output";
  if (node.kind === "draft" && !node.streaming) return "Code that did not run";
  return NAMES[node.kind];
}

function factsOf(node, store) {
  if (node.kind === "code") {
    const time = node.status === "running" ? "" : duration(node.seconds);
    const status = node.status === "running" && store.end ? "" : node.status;
    return [`cell ${node.number}`, node.error && node.status !== "ok" ? `${status}: ${oneLine(node.error, 120)}` : status, time, node.omitted]
      .filter(Boolean)
      .join(" · ");
  }
  if (node.kind === "text" && node.name === "prompt" && node.parent.model) return oneLine(node.parent.model, 60);
  if (node.kind === "text" && node.name.startsWith("question") && node.parent.model) return oneLine(node.parent.model, 60);
  return "";
}

// What is shown of a text that is folded: its end while it streams in, else its beginning.
function folded(text, tail) {
  if (tail) {
    let from = Math.max(0, text.length - FOLDED_CHARACTERS);
    let lines = 0;
    for (let at = text.length - 1; at >= from; at -= 1) {
      if (text[at] === "\n" && (lines += 1) >= FOLDED_LINES) from = at + 1;
    }
    return text.slice(from);
  }
  let to = Math.min(text.length, FOLDED_CHARACTERS);
  let lines = 0;
  for (let at = 0; at < to; at += 1) {
    if (text[at] === "\n" && (lines += 1) >= FOLDED_LINES) to = at;
  }
  return text.slice(0, to);
}

function updateBlock(row, node, view, whole) {
  put(row.rlmName, nameOf(node));
  put(row.rlmFacts, factsOf(node, view.store));
  row.rlmCopy.hidden = node.kind === "pic" || node.kind === "notice";
  const wanted = nameOf(node).toLowerCase();
  row.rlmCopy.setAttribute("aria-label", `Copy ${wanted}`);
  if (node.kind === "pic") {
    updatePicture(row, node);
    return;
  }
  const tail = node.streaming || (node.kind === "out" && view.running());
  const part = folded(node.text, tail);
  const shown = whole ? node.text.slice(0, WHOLE_CHARACTERS) : part;
  const key = `${shown.length}/${view.query}/${node.kind}/${node.version}`;
  if (row.rlmShown !== key) {
    row.rlmShown = key;
    if (view.query && shown.toLowerCase().includes(view.query)) mark(row.rlmBody, shown, view.query);
    else if (node.kind === "code" || node.kind === "draft") highlight(row.rlmBody, shown);
    else put(row.rlmBody, shown);
  }
  const left = node.text.length - part.length;
  row.rlmMore.hidden = left <= 0;
  const over = node.text.length > WHOLE_CHARACTERS ? `, ${grouped(node.text.length - WHOLE_CHARACTERS)} characters not drawn` : "";
  put(row.rlmMore, whole ? `Show less${over}` : `Show all (${grouped(left)} more characters)`);
}

function updatePicture(row, node) {
  row.rlmMore.hidden = true;
  if (!node.source) {
    put(row.rlmBody, node.text);
    return;
  }
  if (row.rlmBody.firstElementChild) return;
  const picture = element("img", "rlm-picture");
  picture.alt = node.text;
  picture.width = node.width;
  picture.height = node.height;
  picture.src = node.source;
  row.rlmBody.append(picture);
}
