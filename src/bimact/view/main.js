"use strict";
// Puts the parts together: which episode is shown, what keys and buttons do.

const SECONDS_OF_A_JUMP = 1;
const SPEEDS = [0.25, 0.5, 1, 2, 4];

class Page {
  constructor(dataset) {
    this.dataset = dataset;
    this.episode = null;
    this.player = new Player((step) => this.#showStep(step), (isPlaying) => this.#showPlaying(isPlaying));
    this.player.views = dataset.cameras.map((camera) => new CameraView(camera, (view) => this.player.join(view)));
    at("cameras").append(...this.player.views.map((view) => view.element));
    const ratios = dataset.cameras.map((camera) => camera.width / camera.height);
    at("cameras").dataset.count = ratios.length;
    at("cameras").style.setProperty("--count", ratios.length);
    at("cameras").style.setProperty("--ratios", ratios.reduce((sum, ratio) => sum + ratio, 0));
    this.plots = new Plots(at("plots"), dataset.joints, (step) => this.player.seek(step));
    this.list = new EpisodeList(dataset, (number) => this.choose(number));
    this.findings = new Findings(
      (episode, step) => this.choose(episode, step),
      (counts) => {
        this.list.setFindings(counts);
        if (this.episode) this.findings.mark(this.episode.number, this.episode.length);
      },
    );
    this.distributions = new Distributions(dataset);
    this.#describe();
    this.#listen();
  }

  start() {
    this.findings.watch();
    this.distributions.watch();
    const { episode, step } = this.#fromAddress();
    this.choose(episode, step);
  }

  /** Show an episode from a step on. */
  async choose(number, step = 0) {
    const chosen = this.dataset.episodes.find((episode) => episode.number === number);
    if (!chosen) return;
    if (this.episode === chosen) return this.player.seek(step);
    this.episode = chosen;
    at("side").classList.remove("open");
    at("side-open").setAttribute("aria-expanded", "false");
    at("step").max = chosen.length - 1;
    this.player.setEpisode(chosen.length, this.dataset.fps, step);
    this.#describeEpisode();
    this.list.setChosen(number);
    this.findings.mark(number, chosen.length);
    this.plots.clear("Reading state and action …");
    for (const view of this.player.views) view.clear("…");
    await pause(this.hasShown ? 120 : 0); // who leafs through the list wants the last one alone
    if (this.episode !== chosen) return;
    this.hasShown = true;
    await Promise.all([this.#loadVectors(chosen), this.#loadVideos(chosen)]);
  }

  async #loadVectors(chosen) {
    try {
      const content = await load(`api/episode/${chosen.number}`);
      if (this.episode !== chosen) return;
      const state = dimensionsOf(content.state, this.dataset.state_size);
      const action = dimensionsOf(content.action, this.dataset.action_size);
      this.plots.setEpisode(chosen.length, state, action);
      this.plots.setStep(this.player.step);
    } catch (error) {
      if (this.episode !== chosen) return;
      this.plots.clear("");
      this.#complain(error.message);
    }
  }

  /** Show the videos as they come, then have those of the next episode made. */
  async #loadVideos(chosen) {
    const waiting = new Set(this.player.views);
    try {
      while (waiting.size && this.episode === chosen) {
        const clips = EMBEDDED ? null : await load(`api/clips/${chosen.number}`);
        if (this.episode !== chosen) return;
        for (const view of waiting) this.#showProgress(view, chosen, clips?.[view.name], waiting);
        if (waiting.size) await pause(250);
      }
      const next = EMBEDDED ? null : this.list.neighbour(1);
      while (next !== null && this.episode === chosen) {
        const clips = Object.values(await load(`api/clips/${next}`));
        if (clips.every((clip) => clip.ready || clip.error)) return;
        await pause(1000);
      }
    } catch (error) {
      if (this.episode === chosen) this.#complain(error.message);
    }
  }

  #showProgress(view, chosen, clip, waiting) {
    if (clip?.error) {
      view.fail(clip.error);
      waiting.delete(view);
    } else if (!clip || clip.ready) {
      waiting.delete(view);
      view.show(videoAddress(chosen.number, view.name));
    } else {
      view.note.textContent = clip.done ? `preparing the video: ${clip.done} of ${count(chosen.length, "step")}` : "preparing the video …";
      view.bar.value = clip.done / chosen.length;
    }
  }

  #showStep(step) {
    this.plots.setStep(step);
    const seconds = (step / this.player.fps).toFixed(2);
    at("step").value = step;
    at("step").setAttribute("aria-valuetext", `step ${step} of ${this.player.length - 1}, ${seconds} seconds`);
    at("clock").replaceChildren(make("b", { textContent: step }), `\u2009/\u2009${this.player.length - 1} `, make("span", { textContent: `${seconds} s` }));
    clearTimeout(this.remembering);
    this.remembering = setTimeout(() => this.#toAddress(), 300);
  }

  #showPlaying(isPlaying) {
    at("play").setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    at("play").querySelector("path").setAttribute("d", isPlaying ? "M7 5h4v14H7zM13 5h4v14h-4z" : "M8 5v14l11-7z");
  }

  #describe() {
    const { dataset } = this;
    const hours = duration(dataset.total_steps / dataset.fps);
    const facts = [
      dataset.format,
      ...(dataset.robot ? [dataset.robot] : []),
      count(dataset.total_episodes, "episode"),
      `${count(dataset.total_steps, "step")} (${hours})`,
      dataset.fps_is_known ? `${dataset.fps} fps` : `unknown fps: ${dataset.fps} assumed`,
      `state ${dataset.state_size}, action ${dataset.action_size}`,
      ...dataset.cameras.map((camera) => `${camera.name} ${camera.width}×${camera.height}`),
    ];
    at("facts").replaceChildren(...facts.map((fact) => make("span", { textContent: fact })));
    at("name").title = dataset.path;
    if (dataset.skipped.length) {
      const reasons = dataset.skipped.map((sentence) => make("li", { textContent: sentence }));
      const summary = make("summary", { textContent: `${count(dataset.skipped.length, "episode")} cannot be read` });
      at("facts").after(make("details", { className: "skipped" }, summary, make("ul", {}, ...reasons)));
    }
    at("legend-state").hidden = dataset.state_size === 0;
    at("legend-action").hidden = dataset.action_size === 0;
    document.body.classList.toggle("exported", EMBEDDED !== null);
  }

  #describeEpisode() {
    const { number, name, length, task } = this.episode;
    at("episode-title").replaceChildren(
      `Episode ${number} `,
      make("span", { className: "muted", textContent: `${count(length, "step")} · ${duration(length / this.dataset.fps)}` }),
    );
    const isNamed = name !== `episode ${number}` && name !== `episode_${number}`;
    const facts = [...(isNamed ? [name] : []), ...(task === null ? [] : [this.dataset.tasks[task]])];
    at("task").textContent = facts.join(" · ");
    at("problem").hidden = true;
    at("previous").disabled = this.list.neighbour(-1) === null;
    at("next").disabled = this.list.neighbour(1) === null;
  }

  #complain(sentence) {
    at("problem").textContent = sentence;
    at("problem").hidden = false;
  }

  #fromAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const number = Number(given.get("episode") ?? NaN);
    const episode = this.dataset.episodes.find((entry) => entry.number === number) ?? this.dataset.episodes[0];
    return { episode: episode.number, step: Number(given.get("step")) || 0 };
  }

  #toAddress() {
    const address = `#episode=${this.episode.number}&step=${this.player.step}`;
    if (location.hash !== address) history.replaceState(null, "", address);
  }

  #leaf(distance) {
    const number = this.list.neighbour(distance);
    if (number !== null) this.choose(number);
  }

  #changeSpeed(distance) {
    const index = SPEEDS.indexOf(this.player.speed) + distance;
    if (!(index in SPEEDS)) return;
    at("speed").value = SPEEDS[index];
    this.player.setSpeed(SPEEDS[index]);
  }

  #listen() {
    const { player, plots } = this;
    const onClick = (id, action) => at(id).addEventListener("click", action);
    onClick("play", () => player.toggle());
    onClick("back", () => player.seek(player.step - 1));
    onClick("forward", () => player.seek(player.step + 1));
    onClick("previous", () => this.#leaf(-1));
    onClick("next", () => this.#leaf(1));
    onClick("zoom-in", () => plots.setZoom(plots.zoom * 2));
    onClick("zoom-out", () => plots.setZoom(plots.zoom / 2));
    onClick("help-open", () => at("help").showModal());
    for (const view of player.views) view.video.addEventListener("click", () => player.toggle());
    at("step").addEventListener("input", (event) => player.seek(Number(event.target.value)));
    at("speed").addEventListener("change", (event) => player.setSpeed(Number(event.target.value)));
    onClick("separate", () => this.#choosePlots(at("separate"), at("together"), false));
    onClick("together", () => this.#choosePlots(at("together"), at("separate"), true));
    this.#exclude(["show-episodes", "episodes"], ["show-findings", "findings"]);
    this.#exclude(["show-plots", "plots", "layout", "zooming"], ["show-distributions", "distributions"]);
    onClick("side-open", () => {
      const isOpen = at("side").classList.toggle("open");
      at("side-open").setAttribute("aria-expanded", String(isOpen));
      if (isOpen) this.list.setChosen(this.episode.number);
    });
    // What was clicked gives the keys back: space plays.
    document.addEventListener("click", (event) => {
      if (event.detail > 0) event.target.closest?.("button")?.blur();
    });
    for (const id of ["speed", "order"]) {
      let isByMouse = false;
      at(id).addEventListener("pointerdown", () => (isByMouse = true));
      at(id).addEventListener("keydown", () => (isByMouse = false));
      at(id).addEventListener("change", () => isByMouse && at(id).blur());
    }
    document.addEventListener("keydown", (event) => this.#onKey(event));
    addEventListener("hashchange", () => {
      const { episode, step } = this.#fromAddress();
      this.choose(episode, step);
    });
  }

  #choosePlots(button, other, isTogether) {
    press(button, other);
    this.plots.setTogether(isTogether);
  }

  /** Two buttons of which each shows its own parts: [button, part, …]. */
  #exclude(...sides) {
    sides.forEach(([button, ...parts], number) => {
      at(button).addEventListener("click", () => {
        const [other, ...others] = sides[1 - number];
        press(at(button), at(other));
        for (const id of parts) at(id).hidden = false;
        for (const id of others) at(id).hidden = true;
      });
    });
  }

  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || at("help").open || event.defaultPrevented) return;
    if (event.target.matches("select, input:not([type=range])")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === " " && event.target.matches("button, summary")) return;
    const { player, plots } = this;
    const jump = event.shiftKey ? Math.max(1, Math.round(SECONDS_OF_A_JUMP * player.fps)) : 1;
    const actions = {
      " ": () => player.toggle(),
      ArrowLeft: () => player.seek(player.step - jump),
      ArrowRight: () => player.seek(player.step + jump),
      Home: () => player.seek(0),
      End: () => player.seek(player.length - 1),
      PageUp: () => this.#leaf(-1),
      PageDown: () => this.#leaf(1),
      p: () => this.#leaf(-1),
      n: () => this.#leaf(1),
      "<": () => this.#changeSpeed(-1),
      ">": () => this.#changeSpeed(1),
      "+": () => plots.setZoom(plots.zoom * 2),
      "-": () => plots.setZoom(plots.zoom / 2),
      "/": () => at("filter").focus(),
      "?": () => at("help").showModal(),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  }
}

load("api/dataset").then(
  (dataset) => new Page(dataset).start(),
  (error) => {
    at("problem").textContent = error.message;
    at("problem").hidden = false;
  },
);
