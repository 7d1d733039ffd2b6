"use strict";
// Time: which step is shown, on all cameras and plots, and the videos that follow it.

const SAME_TIME = 1e-4; // seconds: browsers round to microseconds

/** One camera: its video, or how far the video is. */
class CameraView {
  /** `onReady(view)` is called when an episode's first frame is there. */
  constructor(camera, onReady) {
    this.name = camera.name;
    this.video = make("video", { muted: true, playsInline: true, preload: "auto", tabIndex: -1 });
    this.video.setAttribute("aria-label", `camera ${camera.name}`);
    this.note = make("p", { className: "note" });
    this.bar = make("progress", { max: 1, value: 0, "aria-label": `video of ${camera.name}` });
    this.wait = make("div", { className: "wait" }, this.note, this.bar);
    const picture = make("div", { className: "picture" }, this.video, this.wait);
    this.element = make("figure", { className: "camera" }, picture, make("figcaption", { textContent: camera.name }));
    this.element.style.setProperty("--ratio", camera.width / camera.height);
    this.time = 0;
    this.isReady = false; // its first frame is there
    for (const event of ["seeked", "ended"]) this.video.addEventListener(event, () => this.#seekOn());
    this.video.addEventListener("loadeddata", () => {
      this.isReady = true;
      this.wait.hidden = true;
      onReady(this);
    });
    this.video.addEventListener("error", () => this.fail("this browser cannot play the video (H.264)"));
  }

  /** Show a new episode's video once it is there. */
  clear(note) {
    if (this.video.src.startsWith("blob:")) URL.revokeObjectURL(this.video.src);
    this.isReady = false;
    this.video.removeAttribute("src");
    this.video.load();
    this.wait.hidden = false;
    this.note.textContent = note;
    this.bar.hidden = false;
    this.bar.value = 0;
  }

  show(address) {
    this.video.src = address;
    this.seek(this.time);
  }

  fail(sentence) {
    this.isReady = false;
    this.wait.hidden = false;
    this.note.textContent = sentence;
    this.bar.hidden = true;
  }

  /** Go to a time in seconds. While the browser is on its way to one, only the newest is remembered. */
  seek(time) {
    this.time = time;
    if (!this.video.seeking) this.#seekOn();
  }

  #seekOn() {
    const isThere = Math.abs(this.video.currentTime - this.time) < SAME_TIME;
    if (this.video.paused && !isThere) this.video.currentTime = this.time;
  }
}

/** The step that is shown. All videos follow the first one that can be played, or a clock where there is none. */
class Player {
  /** `onStep(step)` is called whenever another step is shown, `onPlaying(isPlaying)` at each start and stop. */
  constructor(onStep, onPlaying) {
    this.onStep = onStep;
    this.onPlaying = onPlaying;
    this.views = [];
    this.step = 0;
    this.length = 1;
    this.fps = 50;
    this.speed = 1;
    this.isPlaying = false;
    this.run = 0; // counts starts, so that callbacks of an earlier one end
  }

  setEpisode(length, fps, step) {
    this.pause();
    this.length = length;
    this.fps = fps;
    this.seek(step);
  }

  seek(step) {
    const wasPlaying = this.isPlaying;
    if (wasPlaying) this.#stop();
    this.#show(step);
    this.#align();
    if (wasPlaying) this.play();
  }

  toggle() {
    if (this.isPlaying) this.pause();
    else this.play();
  }

  play() {
    if (this.step >= this.length - 1) {
      this.#show(0);
      this.#align();
    }
    this.isPlaying = true;
    this.onPlaying(true);
    this.run += 1;
    const master = this.views.find((view) => view.isReady);
    for (const view of this.views.filter((view) => view.isReady)) this.#start(view);
    if (master) this.#follow(master, this.run);
    else this.#followClock(performance.now(), this.step, this.run);
  }

  pause() {
    if (!this.isPlaying) return;
    this.#stop();
    this.#align();
  }

  setSpeed(speed) {
    this.speed = speed;
    if (this.isPlaying) this.seek(this.step);
  }

  /** A video has come that was not there when playing began. */
  join(view) {
    if (!this.isPlaying) view.seek(this.#time(this.step));
    else this.seek(this.step);
  }

  #stop() {
    this.isPlaying = false;
    this.run += 1;
    for (const view of this.views) view.video.pause();
    this.onPlaying(false);
  }

  /** The middle of a step's time: whatever a browser rounds, it is this step's frame. */
  #time(step) {
    return (step + 0.5) / this.fps;
  }

  #show(step) {
    this.step = Math.min(this.length - 1, Math.max(0, Math.round(step)));
    this.onStep(this.step);
  }

  #align() {
    for (const view of this.views) view.seek(this.#time(this.step));
  }

  #start(view) {
    view.video.playbackRate = this.speed;
    view.video.play().catch(() => {}); // paused again before it began
  }

  #follow(master, run) {
    const video = master.video;
    const next = (time) => {
      if (run !== this.run) return;
      // At its end the last callbacks may still be those of earlier frames.
      this.#show(video.ended ? this.length : Math.floor(time * this.fps + 0.01));
      if (this.step >= this.length - 1) return this.pause();
      for (const view of this.views) if (view !== master) this.#keepUp(view, video);
      wait();
    };
    const wait = () => {
      if (video.requestVideoFrameCallback) video.requestVideoFrameCallback((_, frame) => next(frame.mediaTime));
      else requestAnimationFrame(() => next(video.currentTime));
    };
    video.addEventListener("ended", () => next(video.duration), { once: true });
    wait();
  }

  /** Cameras drift apart when a decoder is late: a little is caught up by speed, much by a jump. */
  #keepUp(view, master) {
    if (!view.isReady) return;
    const late = master.currentTime - view.video.currentTime;
    if (Math.abs(late) > 0.3) view.video.currentTime = master.currentTime;
    const change = Math.abs(late) < 0.5 / this.fps ? 0 : Math.max(-0.25, Math.min(0.25, 2 * late));
    view.video.playbackRate = this.speed * (1 + change);
  }

  #followClock(begin, step, run) {
    requestAnimationFrame((now) => {
      if (run !== this.run) return;
      const next = step + Math.floor(((now - begin) / 1000) * this.fps * this.speed);
      this.#show(Math.max(step, next));
      if (this.step >= this.length - 1) this.pause();
      else this.#followClock(begin, step, run);
    });
  }
}
