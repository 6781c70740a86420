"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// The numbers of every run at the row nearest to where a chart is pointed at.
const signs = new Map(data.metrics.map((metric) => [metric.tag, metric.sign]));

function nearest(steps, cells, wanted) {
  let best = -1;
  for (let i = 0; i < steps.length; i++) {
    if (steps[i] === null || !cells || cells[i] === null) continue;
    if (best < 0 || Math.abs(steps[i] - wanted) < Math.abs(steps[best] - wanted)) best = i;
  }
  return best;
}

function reading(tag, wanted) {
  const parts = [];
  for (const run of data.runs) {
    const steps = run.columns["time/total_timesteps"];
    const cells = run.columns[tag];
    const i = nearest(steps, cells, wanted);
    if (i < 0) continue;
    const name = data.runs.length > 1 ? run.name + ": " : "";
    const value = signs.get(tag) * cells[i];
    parts.push(name + value.toPrecision(6) + " at " + steps[i].toLocaleString("en") + " steps");
  }
  return parts.join("; ");
}

function share(event, svg) {
  const box = svg.getBoundingClientRect();
  return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
}

function moveCursor(plot, at) {
  const line = plot.querySelector(".cursor");
  line.setAttribute("visibility", "visible");
  line.setAttribute("x1", 1000 * at);
  line.setAttribute("x2", 1000 * at);
}

for (const plot of document.querySelectorAll(".plot[data-tag]")) {
  const svg = plot.querySelector("svg");
  const words = plot.parentElement.querySelector(".reading");
  const point = (event) => {
    const at = share(event, svg);
    moveCursor(plot, at);
    words.textContent = reading(plot.dataset.tag, at * Number(plot.dataset.x));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
}

// The episode: a cursor through its charts, by hand or by itself, beside the film if there is one.
if (data.episode) {
  const slider = document.getElementById("step");
  const button = document.getElementById("play");
  const film = document.querySelector("video");
  const plots = [...document.querySelectorAll(".plot[data-series]")];
  let timer = null;

  const show = () => {
    const i = Number(slider.value);
    const step = data.episode.steps[i];
    document.getElementById("at").textContent = "step " + step;
    for (const plot of plots) {
      moveCursor(plot, step / Number(plot.dataset.x || 1));
      const series = data.episode.series[plot.dataset.series];
      for (const value of plot.parentElement.querySelectorAll("b[data-label]")) {
        value.textContent = series[value.dataset.label][i].toPrecision(4);
      }
    }
  };

  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
    if (film) film.pause();
  };

  const start = () => {
    if (slider.value === slider.max) slider.value = 0;
    button.textContent = "Pause";
    if (film) {
      if (film.ended || slider.value === "0") film.currentTime = 0;
      film.play();
    }
    const last = Number(slider.max);
    const pace = film && film.duration ? (1000 * film.duration) / (last + 1) : 10000 / (last + 1);
    const begun = performance.now() - pace * Number(slider.value);
    timer = setInterval(() => {
      const i = Math.floor((performance.now() - begun) / pace);
      slider.value = Math.min(i, last);
      show();
      if (i >= last) stop();
    }, 40);
  };

  button.addEventListener("click", () => (timer === null ? start() : stop()));
  slider.addEventListener("input", () => {
    stop();
    if (film && film.duration) film.currentTime = (film.duration * Number(slider.value)) / (Number(slider.max) + 1);
    show();
  });
  show();
}
