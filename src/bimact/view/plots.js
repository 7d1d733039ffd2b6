"use strict";
// State and action of one episode over its steps, by uPlot. A line marks the step that is shown; dragging moves it.

const GROUP_TITLES = { left: "Left", right: "Right", "": "" };
const SMALL_HEIGHT = 112;
const LARGE_HEIGHT = 300;
const AXIS_FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif";
const FINGER = 6; // pixels that a finger moves aside before it drags
const SPREAD_OF_NOTHING = 1e-6; // of values that are all the same

/** Lines of one or several joints in one plot, with their values next to their names. */
class Plot {
  /** `lines`: {joint, kind: "state" | "action", values, color: () => CSS colour}. */
  constructor(parent, title, lines, length, height, onScrub) {
    this.lines = lines;
    this.step = 0;
    const all = lines.flatMap((line) => line.values).filter((value) => value !== null);
    const low = all.reduce((least, value) => Math.min(least, value), Infinity);
    const high = all.reduce((most, value) => Math.max(most, value), -Infinity);
    this.format = numberFormat(all.length && high - low > SPREAD_OF_NOTHING ? high - low : 0);
    this.element = make("figure", { className: "plot" }, this.#caption(title));
    parent.append(this.element);
    const kinds = [...new Set(lines.map((line) => line.kind))].join(" and ");
    const steps = Array.from({ length }, (_, step) => step);
    this.u = new uPlot(
      this.#options(height, low, high),
      [steps, ...lines.map((line) => line.values)],
      this.element,
    );
    this.u.root.setAttribute("role", "img");
    this.u.root.setAttribute("aria-label", `${title}: ${kinds} over ${length} steps`);
    this.line = make("div", { className: "now" });
    this.u.over.append(this.line);
    this.#listen(onScrub);
    this.showValues(0);
    this.#placeLine();
  }

  resize(width) {
    if (width > 0 && width !== this.u.width) this.u.setSize({ width, height: this.u.height });
  }

  /** Show the steps from `begin` to `end`. */
  setRange(begin, end) {
    this.u.setScale("x", { min: begin, max: end });
  }

  setStep(step) {
    this.step = step;
    this.#placeLine();
    if (this.u.cursor.idx == null || this.u.cursor.left < 0) this.showValues(step);
  }

  showValues(step) {
    for (const line of this.lines) {
      const value = line.values[step] ?? null;
      line.output.textContent = this.format(value);
      line.output.classList.toggle("bad", value === null);
    }
  }

  remove() {
    this.u.destroy();
    this.element.remove();
  }

  #placeLine() {
    if (!this.line) return; // uPlot draws for the first time
    const { min, max } = this.u.scales.x;
    this.line.hidden = this.step < min || this.step > max;
    this.line.style.transform = `translateX(${this.u.valToPos(this.step, "x")}px)`;
  }

  #caption(title) {
    const caption = make("figcaption", {}, make("b", { textContent: title, title }));
    const names = [...new Set(this.lines.map((line) => line.joint.name))];
    for (const name of names) {
      const group = make("span", { className: "values" });
      for (const line of this.lines.filter((line) => line.joint.name === name)) {
        line.output = make("span", { className: `value ${line.kind}`, title: `${name}: ${line.kind}` });
        line.output.style.setProperty("--line", `var(${line.variable})`);
        group.append(line.output);
      }
      if (names.length > 1) group.prepend(make("span", { className: "joint", textContent: name, title: name }));
      caption.append(group);
    }
    caption.classList.toggle("many", names.length > 1);
    return caption;
  }

  #options(height, low, high) {
    const axis = {
      font: AXIS_FONT,
      stroke: () => color("--muted"),
      grid: { stroke: () => color("--plot-grid"), width: 1 },
      ticks: { show: false },
    };
    return {
      width: Math.max(120, this.element.clientWidth),
      height,
      padding: [6, 8, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "joints" }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: false, range: (_, min, max) => [min, Math.max(max, min + 1)] }, y: { range: yRange(low, high) } },
      axes: [
        { ...axis, size: 20, gap: 3, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4] },
        { ...axis, size: 46, gap: 4, space: 26, values: (_, ticks) => ticks.map((tick) => String(Number(tick.toPrecision(6))).replace("-", "\u2212")) },
      ],
      series: [
        {},
        ...this.lines.map((line) => ({
          label: `${line.joint.name} ${line.kind}`,
          stroke: () => color(line.variable),
          width: 1.5,
          dash: line.kind === "action" ? [5, 3] : undefined,
          points: { show: false },
        })),
      ],
      hooks: {
        draw: [() => this.#placeLine()],
        setCursor: [(u) => this.showValues(u.cursor.left >= 0 ? (u.cursor.idx ?? this.step) : this.step)],
      },
    };
  }

  #listen(onScrub) {
    const over = this.u.over;
    const scrub = (event) => {
      const x = event.clientX - over.getBoundingClientRect().left;
      onScrub(this.u.posToIdx(Math.min(over.clientWidth, Math.max(0, x))));
    };
    let touched = null; // where a finger came down: it may want to scroll the page
    over.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      over.setPointerCapture(event.pointerId);
      touched = event.pointerType === "touch" ? event.clientX : null;
      if (touched === null) scrub(event);
      else event.preventDefault(); // no mouse, whose place uPlot would keep
    });
    over.addEventListener("pointermove", (event) => {
      if (!over.hasPointerCapture(event.pointerId)) return;
      if (touched !== null && Math.abs(event.clientX - touched) < FINGER) return;
      touched = null;
      scrub(event);
    });
    over.addEventListener("pointerup", (event) => {
      if (touched !== null) scrub(event);
    });
  }
}

/** A little more than the values take; room around values that are all the same. */
function yRange(low, high) {
  if (!(high >= low)) return [-1, 1];
  const room = high - low > SPREAD_OF_NOTHING ? 0.06 * (high - low) : Math.max(1e-3, 0.1 * Math.abs(high));
  return [low - room, high + room];
}

/** All plots of an episode, in groups. */
class Plots {
  constructor(root, joints, onScrub) {
    this.root = root;
    this.joints = joints;
    this.onScrub = onScrub;
    this.plots = [];
    this.isTogether = false;
    this.zoom = 1;
    this.step = 0;
    new ResizeObserver(() => this.resize()).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
  }

  /** `state` and `action`: one array a dimension. */
  setEpisode(length, state, action) {
    this.length = length;
    this.values = { state, action };
    this.zoom = 1;
    this.#build();
  }

  setTogether(isTogether) {
    this.isTogether = isTogether;
    if (this.values) this.#build();
  }

  /** Replace all plots by a note. */
  clear(note = "") {
    for (const plot of this.plots) plot.remove();
    this.plots = [];
    this.root.replaceChildren(...(note ? [make("p", { className: "muted small", textContent: note })] : []));
  }

  setStep(step) {
    this.step = step;
    if (this.zoom > 1) this.#follow();
    for (const plot of this.plots) plot.setStep(step);
  }

  /** Show a part of the episode's time around the step: 1 is all of it. */
  setZoom(zoom) {
    this.zoom = Math.max(1, Math.min(zoom, 2 ** Math.floor(Math.log2(Math.max(1, this.length / 10)))));
    this.range = [-1, -1];
    this.#follow();
  }

  resize() {
    const widths = this.plots.map((plot) => plot.element.clientWidth);
    this.plots.forEach((plot, number) => plot.resize(widths[number]));
  }

  /** Keep the step within the part that is shown. */
  #follow() {
    const [begin, end] = this.range ?? [-1, -1];
    if (this.step >= begin && this.step <= end) return;
    const width = (this.length - 1) / this.zoom;
    const first = Math.min(Math.max(0, this.step - width / 2), this.length - 1 - width);
    this.range = [first, first + width];
    for (const plot of this.plots) plot.setRange(...this.range);
  }

  #redraw() {
    for (const plot of this.plots) plot.u.redraw(false);
  }

  #build() {
    this.clear();
    this.range = null;
    const names = [...new Set(this.joints.map((joint) => joint.group))];
    const order = ["left", "right", ""].filter((name) => names.includes(name));
    this.root.classList.toggle("sides", order.length > 1);
    for (const name of order) this.#buildGroup(name, this.joints.filter((joint) => joint.group === name), order.length > 1);
    if (this.zoom > 1) this.setZoom(this.zoom);
    this.setStep(this.step);
  }

  #buildGroup(name, joints, isTitled) {
    const grid = make("div", { className: this.isTogether ? "grid together" : "grid" });
    const title = GROUP_TITLES[name] || "Others";
    const section = make("section", { className: `group ${name || "others"}`, "aria-label": isTitled ? title : "Joints" });
    if (isTitled) section.append(make("h3", { textContent: title }));
    section.append(grid);
    this.root.append(section);
    const add = (label, lines, height) => {
      this.plots.push(new Plot(grid, label, lines, this.length, height, (step) => this.onScrub(step)));
    };
    if (this.isTogether) {
      const lines = joints.flatMap((joint, number) => this.#lines(joint, `--joint-${number % 12}`, `--joint-${number % 12}`));
      add(isTitled ? title : "all joints", lines, LARGE_HEIGHT);
      return;
    }
    for (const joint of joints) add(joint.name, this.#lines(joint, "--plot-policy", "--plot-hold"), SMALL_HEIGHT);
  }

  #lines(joint, stateColor, actionColor) {
    return [["state", joint.state, stateColor], ["action", joint.action, actionColor]]
      .filter(([, dimension]) => dimension !== null)
      .map(([kind, dimension, variable]) => ({ joint, kind, variable, values: this.values[kind][dimension] }));
  }
}
