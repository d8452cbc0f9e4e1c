// The panel's part in the front end: keys, what all fields hold when Run is pressed, names for screen readers, a cell below,
// and a saved notebook without the form. What JupyterLab and Notebook 7 do not offer elsewhere is left out there, without a word.

const WIDGET = "application/vnd.jupyter.widget-view+json";

/** Give the notebook that a model is shown in, where the front end lets one reach it (JupyterLab, Notebook 7). */
function notebookOf(model) {
  const context = model.widget_manager?.context;
  return context?.model?.cells && context?.saveState?.connect ? context : null;
}

/** Give each place in the notebook where the panel is displayed: the cell's number, its model, the output's number. */
function* displays(context, panel) {
  const cells = context.model.cells;
  for (let at = 0; at < cells.length; at++) {
    const cell = cells.get(at);
    for (let output = 0; output < (cell.outputs?.length ?? 0); output++) {
      if (cell.outputs.get(output).data?.[WIDGET]?.model_id === panel) yield { at, cell, output };
    }
  }
}

/**
 * Write, in what is about to be saved and not in what is seen, the panel's static words in the place of the form, and of a run
 * that is under way its words.
 */
function putToRest(context, model) {
  const panel = model.get("panel");
  for (const { cell } of displays(context, panel)) {
    cell.sharedModel.getOutputs().forEach((output, at) => {
      const view = output.data?.[WIDGET];
      if (!view) return;
      const saved = structuredClone(output);
      delete saved.data[WIDGET];
      if (view.model_id === panel) saved.data = { ...model.get("rest") };
      cell.sharedModel.updateOutputs(at, at + 1, [saved], "silent-change");
    });
  }
}

function insertBelow(context, model, source) {
  for (const { at } of displays(context, model.get("panel"))) {
    context.model.sharedModel.insertCell(at + 1, { cell_type: "code", source, metadata: { trusted: true } });
    return;
  }
}

/** Give what every field holds here, where it is newer than in a busy kernel. */
async function held(model) {
  const values = {};
  for (const [name, id] of Object.entries(model.get("fields"))) {
    const field = await model.widget_manager.get_model(id);
    const labels = field.get("_options_labels");
    values[name] = labels ? labels[field.get("index")] : field.get("value");
  }
  return values;
}

function initialize({ model }) {
  const context = notebookOf(model);
  if (context === null) return undefined;
  const saving = (_, state) => {
    if (state === "started") putToRest(context, model);
  };
  const told = (message) => {
    if (message?.do === "cell") insertBelow(context, model, message.cell);
  };
  context.saveState.connect(saving);
  model.on("msg:custom", told);
  return () => {
    context.saveState.disconnect(saving);
    model.off("msg:custom", told);
  };
}

/** Name what ipywidgets leaves without a name. */
function name(root) {
  root.setAttribute("role", "form");
  root.setAttribute("aria-label", "Recursive Language Model");
  for (const slider of root.querySelectorAll(".widget-slider")) {
    const label = slider.querySelector(".widget-label")?.textContent ?? "";
    const readout = slider.querySelector(".widget-readout");
    const handle = slider.querySelector(".noUi-handle");
    handle?.setAttribute("aria-label", label);
    handle?.setAttribute("data-lm-suppress-shortcuts", "true"); // or a notebook takes the arrow keys for its cells
    readout?.setAttribute("aria-hidden", "true");
    const tell = () => handle?.setAttribute("aria-valuetext", readout?.textContent ?? "");
    if (readout) new MutationObserver(tell).observe(readout, { childList: true, characterData: true, subtree: true });
    tell();
  }
  const told = root.querySelector(".rlm-panel-told");
  told?.setAttribute("role", "status");
  told?.setAttribute("aria-live", "polite");
}

function render({ model, el }) {
  let stop = () => {};
  let frame = 0;
  const run = async () => {
    document.activeElement?.dispatchEvent(new Event("change", { bubbles: true })); // what was typed, also without leaving the field
    model.send({ do: "run", values: await held(model) });
  };
  const pressed = (event) => {
    const key = event.type === "keydown" && event.key === "Enter" && (event.ctrlKey || event.metaKey);
    const button = event.type === "click" ? event.target.closest?.(".rlm-panel-run:not(:disabled), .rlm-panel-stop:not(:disabled)") : null;
    if (!key && !button) return;
    event.preventDefault();
    event.stopPropagation(); // ipywidgets would send it once more, and where a cell runs only when that has ended
    if (button?.classList.contains("rlm-panel-stop")) model.send({ do: "stop" });
    else run();
  };
  const entered = (event) => {
    if (!event.currentTarget.contains(event.relatedTarget)) model.send({ do: "refresh" });
  };
  const attach = () => {
    const root = el.isConnected ? el.closest(".rlm-panel") : null;
    if (root === null) {
      frame = requestAnimationFrame(attach);
      return;
    }
    name(root);
    root.addEventListener("keydown", pressed, true);
    root.addEventListener("click", pressed, true);
    root.addEventListener("focusin", entered);
    stop = () => {
      root.removeEventListener("keydown", pressed, true);
      root.removeEventListener("click", pressed, true);
      root.removeEventListener("focusin", entered);
    };
  };
  attach();
  return () => {
    cancelAnimationFrame(frame);
    stop();
  };
}

export default { initialize, render };
