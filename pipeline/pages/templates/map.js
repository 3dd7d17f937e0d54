// The map of a page: points to colour, hide, hover over, select and take away as a CSV.
"use strict";
page.drawn.then(() => {
  const { points, classes } = page.data;
  const count = points.path.length;
  const root = page.views.get("map").model;
  const named = (name) => root.document.get_model_by_name(name);
  const source = named("points"), shown = named("shown");
  const by = document.getElementById("map-by");
  const legend = document.getElementById("map-legend");
  const card = document.getElementById("map-card");
  const SPLITS = ["train", "val", "test"];
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"];
  const MARKERS = ["circle", "triangle", "square", "inverted_triangle", "diamond", "hex"];
  const SHAPES = {
    circle: "M6 1a5 5 0 1 0 .01 0z", triangle: "M6 1 11 11H1z", square: "M1.5 1.5h9v9h-9z",
    inverted_triangle: "M6 11 11 1H1z", diamond: "M6 0 11 6 6 12 1 6z", hex: "M3 1h6l3 5-3 5H3L0 6z",
    x: "M2 1 6 5l4-4 1 1-4 4 4 4-1 1-4-4-4 4-1-1 4-4-4-4z",
  };
  const GREY = "#8a8f96";
  let groups = [], groupOf = [];

  const ways = {
    // The largest classes have a colour and a shape of their own; the others share one.
    true() {
      const sizes = classes.map((_, number) => [number, 0]);
      for (const number of points.true) sizes[number][1] += 1;
      const largest = sizes.filter((item) => item[1]).sort((a, b) => b[1] - a[1])
        .slice(0, COLOURS.length).map((item) => item[0]);
      const place = new Map(largest.map((number, at) => [number, at]));
      groups = largest.map((number, at) => ({ name: classes[number], colour: COLOURS[at], marker: MARKERS[at] }));
      groups.push({ name: "other classes", colour: GREY, marker: "circle" });
      groupOf = points.true.map((number) => place.get(number) ?? largest.length);
    },
    error() {
      groups = [
        { name: "wrong", colour: "#D55E00", marker: "x" },
        { name: "right", colour: "#0072B2", marker: "circle" },
        { name: "not scored", colour: GREY, marker: "circle" },
      ];
      groupOf = points.predicted.map((number, at) => (number < 0 ? 2 : number === points.true[at] ? 1 : 0));
    },
    split() {
      groups = SPLITS.map((name, at) => ({ name, colour: ["#8a8f96", "#E69F00", "#0072B2"][at], marker: MARKERS[at] }));
      groupOf = points.split;
    },
  };

  const show = () => {
    shown.booleans = groupOf.map((group) => !groups[group].hidden);
    source.change.emit();
  };

  const drawLegend = () => {
    const sizes = groups.map(() => 0);
    for (const group of groupOf) sizes[group] += 1;
    legend.replaceChildren(...groups.flatMap((group, at) => {
      if (!sizes[at]) return [];
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 12 12");
      svg.setAttribute("aria-hidden", "true");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", SHAPES[group.marker]);
      path.setAttribute("fill", page.onGround(group.colour));
      svg.append(path);
      const button = page.element("button", { type: "button" }, svg,
        page.element("bdi", { textContent: page.visible(group.name) }),
        page.element("span", { className: "count", textContent: sizes[at].toLocaleString("en") }));
      button.setAttribute("aria-pressed", String(!group.hidden));
      button.addEventListener("click", () => {
        group.hidden = !group.hidden;
        button.setAttribute("aria-pressed", String(!group.hidden));
        show();
      });
      return [page.element("li", {}, button)];
    }));
  };

  const colour = () => {
    const hidden = new Set(groups.filter((group) => group.hidden).map((group) => group.name));
    ways[by.value]();
    for (const group of groups) group.hidden = hidden.has(group.name);
    source.data = {
      ...source.data,
      colour: groupOf.map((group) => page.onGround(groups[group].colour)),
      marker: groupOf.map((group) => groups[group].marker),
    };
    drawLegend();
    show();
  };
  by.addEventListener("change", colour);

  // ---- one image: hover, or tap

  const picture = (at) => {
    const number = points.picture[at];
    const frame = page.element("span", { className: "frame" });
    if (number < 0) {
      frame.textContent = "no picture";
      return frame;
    }
    const image = page.element("img", { src: page.data.pictures[number], alt: page.visible(points.path[at]) });
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 64));
    frame.append(image);
    return frame;
  };

  const describe = (at) => {
    const predicted = points.predicted[at];
    const lines = [page.element("div", {}, "labelled ", page.name(points.true[at]), `, ${SPLITS[points.split[at]]}`)];
    if (predicted >= 0) {
      const right = predicted === points.true[at];
      lines.push(page.element("div", { className: right ? "right" : "wrong" },
        "predicted ", page.name(predicted), ` ${(100 * points.probability[at]).toFixed(1)} %`));
    }
    const path = page.element("div", { className: "path" },
      page.element("bdi", { textContent: page.visible(points.path[at]) }));
    card.replaceChildren(picture(at), ...lines, path);
  };

  source.inspect.connect(() => {
    const at = source.inspected.indices[0];
    if (at !== undefined) describe(at);
  });

  // ---- several: lasso, or whatever is shown

  const selection = document.getElementById("map-selection");
  const chosen = document.getElementById("map-chosen");
  let selected = [];

  const select = () => {
    const visible = groupOf.map((group) => !groups[group].hidden);
    selected = [...source.selected.indices].filter((at) => visible[at]);
    if (selected.length === 1) describe(selected[0]);
    selection.hidden = selected.length === 0;
    const noun = selected.length === 1 ? "image" : "images";
    document.getElementById("map-count").textContent = `${selected.length.toLocaleString("en")} ${noun} selected`;
    const seen = selected.filter((at) => points.picture[at] >= 0).slice(0, 48);
    chosen.replaceChildren(...seen.map((at) => page.element("img", {
      src: page.data.pictures[points.picture[at]], alt: page.visible(points.path[at]),
      title: page.visible(points.path[at]),
    })));
  };
  source.selected.change.connect(select);

  const toggles = { "map-lasso": ["lasso"], "map-zoom": ["pan", "zoom"] };
  for (const [id, tools] of Object.entries(toggles)) {
    const button = document.getElementById(id);
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const [other, others] of Object.entries(toggles)) {
        for (const tool of others) named(tool).active = on && other === id;
        document.getElementById(other).setAttribute("aria-pressed", String(on && other === id));
      }
    });
  }
  document.getElementById("map-reset").addEventListener("click", () => named("reset").do.emit());
  document.getElementById("map-clear").addEventListener("click", () => { source.selected.indices = []; });
  document.getElementById("map-all").addEventListener("click", () => {
    source.selected.indices = groupOf.flatMap((group, at) => (groups[group].hidden ? [] : [at]));
  });

  document.getElementById("map-download").addEventListener("click", () => {
    page.downloadManifest("selection.csv", selected.map((at) => [
      points.path[at], classes[points.true[at]], points.declared[at], points.key[at],
      ...points.group.slice(at, at + 1),
    ]));
  });

  colour();
  page.repaint.push(colour);
  document.documentElement.dataset.ready = "true";
});
