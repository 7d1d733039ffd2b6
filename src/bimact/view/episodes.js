"use strict";
// The list of episodes. Only the rows that can be seen are in the page: there may be many thousands.

const ROW = 56; // pixels; view.css has the same
const ROWS_BEYOND = 6; // rows above and below what can be seen

class EpisodeList {
  /** `onChoose(number)` is called when the user chooses an episode. */
  constructor(dataset, onChoose) {
    this.dataset = dataset;
    this.onChoose = onChoose;
    this.root = at("episode-list");
    this.chosen = null;
    this.counts = {}; // findings by episode and severity
    this.content = make("div", { className: "rows", role: "presentation" });
    this.root.append(this.content);
    this.root.addEventListener("scroll", () => this.#render());
    new ResizeObserver(() => this.#render()).observe(this.root);
    this.root.addEventListener("click", (event) => {
      const row = event.target.closest("[data-number]");
      if (row) this.onChoose(Number(row.dataset.number));
    });
    this.root.addEventListener("keydown", (event) => this.#onKey(event));
    at("filter").addEventListener("input", () => this.#arrange());
    at("order").addEventListener("change", () => this.#arrange());
    this.#arrange();
  }

  setChosen(number) {
    this.chosen = number;
    const index = this.#index();
    if (index >= 0) {
      const top = index * ROW;
      const isAbove = top < this.root.scrollTop;
      if (isAbove || top + ROW > this.root.scrollTop + this.root.clientHeight) {
        this.root.scrollTop = isAbove ? top : top + ROW - this.root.clientHeight;
      }
    }
    this.#render();
  }

  setFindings(counts) {
    this.counts = counts;
    this.#arrange();
  }

  /** The episode so many rows further down the list; null beyond its ends. */
  neighbour(distance) {
    const index = this.#index();
    if (index < 0) return this.shown.length ? this.shown[0].number : null;
    return this.shown[index + distance]?.number ?? null;
  }

  #index() {
    return this.shown.findIndex((episode) => episode.number === this.chosen);
  }

  #onKey(event) {
    const steps = { ArrowUp: -1, ArrowDown: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const number = this.neighbour(steps[event.key]);
    if (number !== null) this.onChoose(number);
  }

  #arrange() {
    const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (episode) =>
      `${episode.number} ${episode.name} ${this.dataset.tasks[episode.task] ?? ""}`.toLowerCase();
    const number = words.length === 1 && /^\d+$/.test(words[0]) ? Number(words[0]) : null;
    this.shown = this.dataset.episodes.filter((episode) => words.every((word) => text(episode).includes(word)));
    const findings = (episode) => Object.values(this.counts[episode.number] ?? {}).reduce((sum, n) => sum + n, 0);
    const orders = {
      longest: (one, other) => other.length - one.length,
      shortest: (one, other) => one.length - other.length,
      findings: (one, other) => findings(other) - findings(one),
      // The episode whose number was typed comes before those that hold its digits.
      number: (one, other) => (other.number === number) - (one.number === number),
    };
    this.shown.sort(orders[at("order").value]);
    this.content.replaceChildren();
    this.root.scrollTop = 0;
    this.content.style.height = `${this.shown.length * ROW}px`;
    const all = this.dataset.episodes.length;
    at("episode-count").textContent =
      this.shown.length === all ? count(all, "episode") : `${this.shown.length} of ${count(all, "episode")}`;
    this.#render();
  }

  #render() {
    const first = Math.max(0, Math.floor(this.root.scrollTop / ROW) - ROWS_BEYOND);
    const last = Math.ceil((this.root.scrollTop + this.root.clientHeight) / ROW) + ROWS_BEYOND;
    this.content.replaceChildren(
      ...this.shown.slice(first, last).map((episode, number) => this.#row(episode, first + number)),
    );
    const isShown = this.content.querySelector("[aria-selected=true]");
    this.root.setAttribute("aria-activedescendant", isShown ? isShown.id : "");
  }

  #row(episode, index) {
    const seconds = duration(episode.length / this.dataset.fps);
    const task = this.dataset.tasks[episode.task] ?? "";
    const row = make(
      "div",
      {
        className: "row",
        role: "option",
        id: `episode-${episode.number}`,
        "aria-selected": String(episode.number === this.chosen),
        "aria-setsize": this.shown.length,
        "aria-posinset": index + 1,
        title: task ? `${episode.name}: ${task}` : episode.name,
      },
      make("span", { className: "number", textContent: episode.number }),
      make("span", { className: "length", textContent: `${count(episode.length, "step")} · ${seconds}` }),
      this.#badges(episode),
      make("span", { className: "about", textContent: task || episode.name }),
    );
    row.dataset.number = episode.number;
    row.style.top = `${index * ROW}px`;
    return row;
  }

  #badges(episode) {
    const badges = make("span", { className: "badges" });
    for (const [severity, number] of Object.entries(this.counts[episode.number] ?? {})) {
      badges.append(make("b", { className: `is-${severity}`, textContent: number, title: count(number, SEVERITIES[severity]) }));
    }
    return badges;
  }
}
