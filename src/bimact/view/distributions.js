"use strict";
// How state and action are distributed over all episodes: a histogram a joint, and one of the episodes' lengths.

const BOX = { width: 240, height: 64 };

class Distributions {
  constructor(dataset) {
    this.dataset = dataset;
    this.root = at("distributions");
    this.status = make("p", { className: "muted", role: "status" });
    this.bar = make("progress", { "aria-label": "episodes read" });
    this.lengths = make("section", { className: "lengths", "aria-label": "Episode lengths" });
    this.joints = make("section", { className: "grid", "aria-label": "Values of the joints" });
    this.root.append(this.status, this.bar, this.lengths, this.joints);
  }

  async watch() {
    for (;;) {
      let answer;
      try {
        answer = await load("api/distributions");
      } catch (error) {
        this.status.textContent = error.message;
        return;
      }
      if (answer === null) return;
      this.#show(answer);
      if (answer.state !== "running") return;
      await pause(1000);
    }
  }

  #show(answer) {
    this.bar.hidden = answer.state !== "running";
    this.bar.max = answer.of;
    this.bar.value = answer.done;
    const { total_steps: steps } = this.dataset;
    const sentences = {
      running: `Reading: ${answer.done.toLocaleString("en")} of ${count(answer.of, "episode")} so far.`,
      done: `All ${count(steps, "step")} of ${count(answer.of, "episode")}: how often a value occurs; mean ± standard deviation.`,
      failed: answer.error,
    };
    this.status.textContent = sentences[answer.state];
    this.status.classList.toggle("bad", answer.state === "failed");
    this.lengths.replaceChildren(make("h3", { textContent: "Episode lengths" }), this.#lengthsFigure(answer.lengths));
    if (answer.joints) {
      const figures = this.dataset.joints.map((joint) => this.#jointFigure(joint, answer.joints));
      this.joints.replaceChildren(...figures);
    }
  }

  #lengthsFigure(lengths) {
    const { low, high, median } = lengths;
    const text = low === high ? `all ${count(low, "step")}` : `${low} to ${count(high, "step")}, median ${median}`;
    if (low === high) return make("p", { textContent: text });
    const range = [lengths.begin, lengths.begin + lengths.width * lengths.counts.length];
    const drawing = histogramDrawing([{ ...lengths, kind: "length" }], range, `Episode lengths: ${text}`);
    return make("figure", { className: "histogram" }, make("figcaption", { textContent: text }), drawing, ends([low, high], String));
  }

  #jointFigure(joint, answer) {
    const parts = ["state", "action"]
      .filter((kind) => joint[kind] !== null)
      .map((kind) => ({ kind, ...answer[kind][joint[kind]] }));
    const drawn = parts.filter((part) => part.count > 0);
    const low = Math.min(...drawn.map((part) => part.low));
    const high = Math.max(...drawn.map((part) => part.high));
    const format = numberFormat(high - low > SPREAD_OF_NOTHING ? high - low : 0);
    const caption = make("figcaption", {}, make("b", { textContent: joint.name, title: joint.name }));
    for (const part of parts) caption.append(this.#facts(part, format));
    const figure = make("figure", { className: "histogram" }, caption);
    if (drawn.length) {
      const [first, last] = yRange(low, high);
      const label = `${joint.name}: distribution from ${format(low)} to ${format(high)}`;
      figure.append(histogramDrawing(drawn, [first, last], label), ends([low, high], format));
    }
    return figure;
  }

  #facts(part, format) {
    const facts = part.count ? `${format(part.mean)} ± ${format(part.deviation)}` : "no finite value";
    const bad = part.nonfinite ? `, ${count(part.nonfinite, "value")} NaN or infinite` : "";
    return make("span", { className: `facts ${part.kind}` }, `${part.kind}: ${facts}`, make("span", { className: "bad", textContent: bad }));
  }
}

/** An SVG of histograms one over the other; areas are equal. */
function histogramDrawing(histograms, [low, high], label) {
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const root = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  const bars = histograms.map((histogram) => joinedBins(histogram, (high - low) / 60));
  const highest = Math.max(...bars.flatMap((bar) => bar.densities));
  const x = (value) => (BOX.width * (value - low)) / (high - low);
  const y = (density) => BOX.height * (1 - (0.96 * density) / highest);
  for (const { kind, begin, width, densities } of bars) {
    let path = `M${x(begin).toFixed(2)} ${BOX.height}`;
    densities.forEach((density, number) => {
      path += `V${y(density).toFixed(2)}H${x(begin + (number + 1) * width).toFixed(2)}`;
    });
    root.append(svg("path", { class: kind, d: `${path}V${BOX.height}` }));
  }
  return root;
}

/** Bins that are too narrow to be seen become wider ones; with the share of the values in each, by its width. */
function joinedBins({ kind, begin, width, counts }, least) {
  const together = Math.max(1, Math.ceil(least / width));
  const total = counts.reduce((sum, number) => sum + number, 0);
  const densities = [];
  counts.forEach((number, bin) => {
    const joined = Math.floor(bin / together);
    densities[joined] = (densities[joined] ?? 0) + number / total / (width * together);
  });
  return { kind, begin, width: width * together, densities };
}

/** The labels under the left and the right end. */
function ends(range, format) {
  return make("p", { className: "ends" }, ...range.map((value) => make("span", { textContent: format(value) })));
}
