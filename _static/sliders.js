/* A slider below a picture moves a point along paths that the chapter has computed.

   The extension puts their numbers below the picture, as JSON (lmmbook/book/sliders.py says what is
   in it); this adds the controls. Without scripts, in print and in Colab there is the picture alone,
   which shows the same paths. */
(() => {
  "use strict";

  const PAUSE = 150; // milliseconds from place to place
  const SVG = "http://www.w3.org/2000/svg";

  /** An HTML element with attributes and children. */
  function make(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  /** A number as the reader sees it: four digits that count. */
  const written = (value) => Number(value.toPrecision(4)).toLocaleString("en", {
    maximumFractionDigits: 4,
  });

  /** The picture in a frame, with a layer on it: the way so far, and a point. */
  function layer(picture) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 100 100"); // places are in percent of the picture
    svg.setAttribute("preserveAspectRatio", "none");
    const trail = document.createElementNS(SVG, "polyline");
    svg.append(trail);
    const point = make("span", { class: "slider-point" });
    const frame = make("span", { class: "slider-picture" });
    picture.replaceWith(frame);
    const drawn = make("span", { class: "slider-layer", "aria-hidden": "true" });
    drawn.append(svg, point);
    frame.append(picture, drawn);
    return (path, at) => {
      const places = path.left.slice(0, at + 1).map((left, i) => `${left},${path.top[i]}`);
      trail.setAttribute("points", places.join(" "));
      point.style.left = `${path.left[at]}%`;
      point.style.top = `${path.top[at]}%`;
    };
  }

  /** A labelled list for each choice: name to <select>. */
  function choosers(paths, number) {
    const lists = new Map();
    paths[0].choices.forEach(([name], i) => {
      const answers = new Set(paths.map((path) => path.choices[i][1]));
      const options = [...answers].map((answer) => make("option", {}, answer));
      lists.set(name, make("select", { id: `slider-${number}-${i}` }, ...options));
    });
    return lists;
  }

  function start(script, number) {
    const paths = JSON.parse(script.textContent);
    const picture = script.closest(".cell_output").querySelector("img");
    const draw = layer(picture);

    const lists = choosers(paths, number);
    const slider = make("input", { type: "range", id: `slider-${number}`, min: 0, value: 0 });
    const button = make("button", { type: "button" }, "Play");
    const status = make("p", { role: "status", class: "slider-status" });

    const chosen = () => paths.find((path) =>
      path.choices.every(([name, answer]) => lists.get(name).value === answer));

    function show() {
      const path = chosen();
      slider.max = path.steps.length - 1; // the browser moves a value beyond it
      const at = Number(slider.value);
      draw(path, at);
      const unit = path.unit[0].toUpperCase() + path.unit.slice(1);
      const step = `${unit} ${path.steps[at].toLocaleString("en")}`;
      slider.setAttribute("aria-valuetext", step);
      status.replaceChildren(make("strong", {}, step));
      for (const [name, values] of path.facts) {
        const number = make("strong", {}, written(values[at]));
        status.append(", ", make("span", {}, `${name} `, number));
      }
    }

    let timer = null;
    function stop() {
      clearInterval(timer);
      timer = null;
      button.textContent = "Play";
      status.setAttribute("aria-live", "polite");
    }
    function play() {
      if (timer !== null) return stop();
      if (slider.value === slider.max) slider.value = 0;
      button.textContent = "Pause";
      status.setAttribute("aria-live", "off"); // it would speak without end
      timer = setInterval(() => {
        slider.value = Number(slider.value) + 1;
        if (slider.value === slider.max) stop();
        show();
      }, PAUSE);
      show();
    }

    slider.addEventListener("input", () => { stop(); show(); });
    for (const list of lists.values()) list.addEventListener("change", () => { stop(); show(); });
    button.addEventListener("click", play);

    const controls = make("div", { class: "slider-controls", role: "group", "aria-label": "Move the point" });
    for (const [name, list] of [...lists, [paths[0].unit, slider]]) {
      const label = make("label", { for: list.id }, name);
      controls.append(make("span", { class: "slider-control" }, label, list));
    }
    // What moves by itself is not for those who ask for less movement.
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) controls.append(button);
    script.parentElement.after(controls, status);
    show();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("script.lmmbook-sliders").forEach(start);
  });
})();
