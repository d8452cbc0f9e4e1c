// Words and figures of the live view, the same that `words.py` gives, and the small helpers that write them on a page.
// Every text reaches the page through textContent: there is no markup in a string anywhere in these files.

function element(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function figure(value) {
  return typeof value === "number" && Number.isFinite(value) ? Math.max(value, 0) : 0;
}

function grouped(value) {
  return Math.floor(figure(value)).toString().replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

function count(number, noun) {
  const whole = Math.floor(figure(number));
  if (whole === 1 || noun === "llm_query" || noun === "rlm_query") return `${grouped(whole)} ${noun}`;
  return `${grouped(whole)} ${noun.endsWith("ry") ? noun.slice(0, -1) + "ies" : noun + "s"}`;
}

function duration(seconds) {
  const value = figure(seconds);
  if (value < 0.0995) return `${Math.round(value * 1000)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  if (whole < 60) return `${whole} s`;
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min` + (whole % 60 ? ` ${two(whole % 60)} s` : "");
  const minutes = Math.floor((whole % 3600) / 60);
  return `${grouped(whole / 3600)} h` + (minutes ? ` ${two(minutes)} min` : "");
}

// While something runs: whole seconds, so that a figure that ticks does not dance.
function clock(seconds) {
  return figure(seconds) >= 59.5 ? duration(seconds) : `${Math.floor(figure(seconds))} s`;
}

function tokens(number, estimated) {
  return (estimated ? "~" : "") + grouped(number);
}

function fixed(value) {
  const [whole, part] = value.toFixed(2).split(".");
  return `${grouped(Number(whole))}.${part}`;
}

function dollars(amount) {
  const value = figure(amount);
  if (value === 0 || value >= 1) return `$${fixed(value)}`;
  return value >= 0.0001 ? `$${value.toFixed(4)}` : "under $0.0001";
}

function money(cost, estimated) {
  return cost === null || cost === undefined ? "" : (estimated ? "~" : "") + dollars(cost);
}

function states(counts) {
  const told = ["ok", "running", "failed"].filter((state) => counts[state]).map((state) => `${grouped(counts[state])} ${state}`);
  return told.join(", ");
}

function oneLine(text, cap) {
  const line = text.slice(0, 4 * cap).replace(/\s+/g, " ").trim();
  return line.length <= cap ? line : line.slice(0, cap - 1).trimEnd() + "…";
}

// The first line of prose that says something, without the marks of headings and lists.
function teaser(text) {
  for (const line of text.slice(0, 4000).split("\n")) {
    const bare = line.replace(/^[ \t#>*\-_=`]+/, "").replace(/\*+$/, "").trim();
    if (bare) return oneLine(bare, 160);
  }
  return "";
}

const HIGHLIGHT_CAP = 8192;
const KEYWORDS =
  "False|None|True|and|as|assert|async|await|break|case|class|continue|def|del|elif|else|except|finally|for|from|global|if|" +
  "import|in|is|lambda|match|nonlocal|not|or|pass|raise|return|try|while|with|yield";
const TOKEN = new RegExp(
  "(#[^\\n]*)" +
    "|((?:\\b[rRbBfFuU]{1,2})?(?:\"\"\"[^]*?(?:\"\"\"|$)|'''[^]*?(?:'''|$)|\"(?:\\\\.|[^\"\\\\\\n])*\"?|'(?:\\\\.|[^'\\\\\\n])*'?))" +
    `|\\b(${KEYWORDS})\\b` +
    "|\\b(\\d[\\w.]*)" +
    "|\\b(llm_query|llm_query_batched|rlm_query|rlm_query_batched|FINAL_VAR|SHOW_VARS|context)\\b",
  "g",
);
const TONES = ["comment", "string", "keyword", "number", "ours"];

// Write Python code into `node` as spans; what lies beyond the cap stays plain.
function highlight(node, code) {
  node.textContent = "";
  let at = 0;
  const plain = (to) => {
    if (to > at) node.append(document.createTextNode(code.slice(at, to)));
    at = to;
  };
  const head = code.slice(0, HIGHLIGHT_CAP);
  for (const found of head.matchAll(TOKEN)) {
    if (!found[0]) continue;
    plain(found.index);
    const tone = TONES[found.slice(1).findIndex((group) => group !== undefined)];
    node.append(element("span", `rlm-${tone}`, found[0]));
    at = found.index + found[0].length;
  }
  plain(code.length);
}

// Write `text` into `node` with every place that holds `query` marked, up to 200 of them.
function mark(node, text, query) {
  node.textContent = "";
  const low = text.toLowerCase();
  let at = 0;
  if (low.length === text.length) {
    for (let marks = 0; marks < 200; marks += 1) {
      const found = low.indexOf(query, at);
      if (found < 0) break;
      if (found > at) node.append(document.createTextNode(text.slice(at, found)));
      node.append(element("mark", "", text.slice(found, found + query.length)));
      at = found + query.length;
    }
  }
  node.append(document.createTextNode(text.slice(at)));
}

const WORDS_OF_CODE = ["repl", "python", "py", "python3", "ipython"];

// Split a reply that streams in: [is code, text], the last piece open.
function pieces(reply) {
  const found = [];
  let fence = "";
  let lines = [];
  const close = (code) => {
    const text = lines.join("\n").replace(/^\n+|\n+$/g, "");
    if (text.trim()) found.push([code, text]);
    lines = [];
  };
  for (const line of reply.split("\n")) {
    const match = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)$/.exec(line);
    if (!fence && match && WORDS_OF_CODE.includes(match[2].trim().toLowerCase().split(" ")[0])) {
      close(false);
      fence = match[1];
    } else if (fence && match && match[1][0] === fence[0] && match[1].length >= fence.length && !match[2].trim()) {
      close(true);
      fence = "";
    } else {
      lines.push(line);
    }
  }
  close(Boolean(fence));
  return found;
}

async function copy(text, host) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", "rlm-away");
    area.value = text;
    host.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
