"use strict";
// What `bimact check` finds: a list in which a click leads to the episode and step.

const FINDINGS_AT_ONCE = 100;
const SEVERITIES = { error: "error", warning: "warning", info: "note" }; // the worst first

class Findings {
  /** `onChoose(episode, step)`; `onKnown(counts by episode)` is called once all is known. */
  constructor(onChoose, onKnown) {
    this.onChoose = onChoose;
    this.onKnown = onKnown;
    this.findings = [];
    this.marks = [];
  }

  async watch() {
    const state = at("finding-state");
    for (;;) {
      let answer;
      try {
        answer = await load("api/findings");
      } catch (error) {
        state.textContent = error.message;
        return;
      }
      if (answer === null) return;
      if (answer.state === "failed") {
        state.textContent = answer.error;
        return;
      }
      if (answer.state === "done") {
        this.#show(answer);
        return;
      }
      state.textContent = "`bimact check` is looking through the dataset …";
      await pause(1000);
    }
  }

  /** Marks on the scrubber where this episode has a finding. */
  mark(episode, length) {
    const here = this.findings.filter((finding) => finding.episode === episode && finding.step !== null);
    at("marks").replaceChildren(
      ...here.slice(0, 500).map((finding) => {
        const mark = make("i", { className: `is-${finding.severity}` });
        mark.style.left = `${(100 * finding.step) / Math.max(1, length - 1)}%`;
        return mark;
      }),
    );
  }

  #show(answer) {
    this.findings = answer.findings;
    const total = Object.values(answer.counts).reduce((sum, number) => sum + number, 0);
    const found = Object.keys(SEVERITIES).filter((severity) => answer.counts[severity]);
    const kinds = found.map((severity) => count(answer.counts[severity], SEVERITIES[severity]));
    at("finding-state").textContent = total ? kinds.join(", ") : "`bimact check` finds nothing to complain about.";
    at("finding-count").textContent = total ? total.toLocaleString("en") : "";
    at("finding-count").className = `count is-${found[0]}`;
    this.#list(0);
    this.onKnown(answer.episodes);
  }

  #list(begin) {
    const end = Math.min(begin + FINDINGS_AT_ONCE, this.findings.length);
    const list = at("finding-list");
    list.append(...this.findings.slice(begin, end).map((finding) => this.#entry(finding)));
    if (end === this.findings.length) return;
    const more = make("button", { className: "plain", textContent: `Show more (${end} of ${this.findings.length})` });
    more.addEventListener("click", () => {
      more.remove();
      this.#list(end);
    });
    list.append(more);
  }

  #entry(finding) {
    const where = [
      finding.episode === null ? "dataset" : `episode ${finding.episode}`,
      ...(finding.step === null ? [] : [`step ${finding.step}`]),
    ];
    const head = make(
      "span",
      { className: "head" },
      make("b", { className: `is-${finding.severity}`, textContent: SEVERITIES[finding.severity] }),
      ` ${where.join(", ")}`,
    );
    const parts = [head, make("span", { className: "sentence", textContent: finding.sentence })];
    if (finding.advice) parts.push(make("span", { className: "advice", textContent: finding.advice }));
    if (finding.episode === null) return make("div", { className: "finding" }, ...parts);
    const button = make("button", { className: "finding" }, ...parts);
    button.addEventListener("click", () => this.onChoose(finding.episode, finding.step ?? 0));
    return button;
  }
}
