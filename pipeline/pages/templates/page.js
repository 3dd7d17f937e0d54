// What every page does: pictures, galleries, tables, and charts in the page's own colours.
// Text from data reaches the page through textContent alone.
"use strict";
const page = {
  data: JSON.parse(document.getElementById("data").textContent),
  views: new Map(),

  // Control characters show as their pictures, as in the text that the page was made with.
  visible(text) {
    return text.replace(/[\u0000-\u001f\u007f]/g, (c) =>
      String.fromCharCode(c === "\u007f" ? 0x2421 : 0x2400 + c.charCodeAt(0)),
    ).replace(/[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]/g, (c) => (c.length === 2 ? c : "\ufffd"));
  },

  element(tag, content = {}, ...children) {
    const made = Object.assign(document.createElement(tag), content);
    made.append(...children);
    return made;
  },

  name(number) {
    return page.element("bdi", { textContent: page.visible(page.data.classes[number]) });
  },

  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  },
};

page.showPictures = (root) => {
  for (const image of root.querySelectorAll("img[data-picture]:not([src])")) {
    image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 64));
    image.src = page.data.pictures[Number(image.dataset.picture)];
  }
};

// ---- galleries: filters, and a few rows until more are asked for

const FIRST = 24;

page.gallery = (id) => {
  const list = document.getElementById(id);
  const items = [...list.children];
  const more = document.querySelector(`[data-more="${id}"]`);
  const none = document.querySelector(`[data-none="${id}"]`);
  const clear = document.querySelector(`[data-clear="${id}"]`);
  const filters = [...document.querySelectorAll(`select[data-gallery="${id}"]`)];
  let limit = FIRST;

  const show = () => {
    const fits = items.filter((item) =>
      filters.every(({ value, dataset }) => value === "" || item.dataset[dataset.by] === value),
    );
    const shown = new Set(fits.slice(0, limit));
    for (const item of items) item.hidden = !shown.has(item);
    more.hidden = fits.length <= limit;
    if (none) none.hidden = fits.length > 0;
    if (clear) clear.hidden = filters.every(({ value }) => value === "");
  };
  for (const filter of filters) {
    const present = new Set(items.map((item) => Number(item.dataset[filter.dataset.by])));
    for (const number of [...present].sort((a, b) => a - b)) {
      filter.append(new Option(page.visible(page.data.classes[number]), number));
    }
    filter.addEventListener("change", () => { limit = FIRST; show(); });
  }
  more.addEventListener("click", () => { limit += 4 * FIRST; show(); });
  clear?.addEventListener("click", () => { for (const filter of filters) filter.value = ""; show(); });
  show();
  return {
    choose(values) {
      for (const filter of filters) {
        const value = String(values[filter.dataset.by]);
        // A pair without a picture is said to have none.
        if (![...filter.options].some((option) => option.value === value)) {
          filter.append(new Option(page.visible(page.data.classes[Number(value)]), value));
        }
        filter.value = value;
      }
      limit = FIRST;
      show();
    },
    all() { limit = items.length; show(); },
  };
};

const galleries = new Map(
  [...document.querySelectorAll(".gallery, .groups")].map((list) => [list.id, page.gallery(list.id)]),
);
page.showPictures(document);

for (const button of document.querySelectorAll("button[data-true]")) {
  button.addEventListener("click", () => {
    galleries.get("wrong-images").choose(button.dataset);
    document.getElementById("wrong").scrollIntoView();
    document.querySelector('[data-clear="wrong-images"]').focus({ preventScroll: true });
  });
}

// ---- files to take away; file names of Linux are bytes, which need not be UTF-8

const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

const bytes = (text) => {
  const encoder = new TextEncoder();
  const parts = text.split(/((?<![\ud800-\udbff])[\udc80-\udcff])/);
  return parts.map((part, at) =>
    at % 2 ? Uint8Array.of(part.charCodeAt(0) - 0xdc00) : encoder.encode(part));
};

// A manifest for train-head, of rows of path, label, split and key; of data with groups, the group too.
page.downloadManifest = (name, rows) => {
  const columns = ["path", "label", "split", "key", "group"].slice(0, rows[0]?.length);
  const text = [columns, ...rows].map((row) => row.map(cell).join(",") + "\n");
  const url = URL.createObjectURL(new Blob(bytes(text.join("")), { type: "text/csv" }));
  page.element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
};

// ---- tables: filter by name, sort by column

for (const field of document.querySelectorAll("input[data-filter]")) {
  const rows = [...document.querySelectorAll(`#${field.dataset.filter} tbody tr`)];
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    head.querySelector("button")?.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = ({ cells }) => cells[column].dataset.value ?? cells[column].textContent.trim();
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) =>
        (up ? 1 : -1) * value(a).localeCompare(value(b), undefined, { numeric: !isNaN(value(a)) }));
      if (!isNaN(value(rows[0] ?? head.parentNode))) {
        rows.sort((a, b) => (up ? 1 : -1) * (Number(value(a)) - Number(value(b))));
      }
      body.append(...rows);
    });
  }
}

// ---- charts: drawn by Bokeh, in the page's colours, also when these change

// Okabe and Ito's colours, and those that take their place on a dark ground.
const ON_DARK = {
  "#0072B2": "#56B4E9", "#D55E00": "#E69F00", "#009E73": "#2DC79B", "#E69F00": "#F0E442",
  "#56B4E9": "#D55E00", "#CC79A7": "#CC79A7", "#8a8f96": "#8a8f96",
};
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
page.onGround = (colour) => (dark.matches && !printing && ON_DARK[colour]) || colour;
page.repaint = [];

// What a glyph was drawn in on white, by model: what is on the page now may be another colour.
const drawnIn = new Map();
const paintGlyph = (glyph) => {
  for (const name of ["line_color", "fill_color"]) {
    const given = glyph[name]?.value;
    if (typeof given !== "string" || !given.startsWith("#")) continue;
    const key = glyph.id + name;
    if (!drawnIn.has(key)) drawnIn.set(key, given);
    glyph.setv({ [name]: { value: page.onGround(drawnIn.get(key)) } });
  }
};

page.paint = () => {
  const ground = page.colour("--ground");
  const ink = page.colour("--ink"), soft = page.colour("--soft"), line = page.colour("--line");
  const looks = {
    LinearAxis: {
      axis_line_color: line, major_tick_line_color: line,
      major_label_text_color: soft,
    },
    Grid: { grid_line_color: line },
    Legend: { label_text_color: ink },
    Figure: { border_fill_color: ground, background_fill_color: ground },
  };
  for (const { model } of page.views.values()) {
    for (const part of model.references()) {
      const look = looks[part.type];
      if (look) part.setv(look);
      if (part.type === "Line" || part.type === "Scatter" || part.type === "Segment") paintGlyph(part);
    }
  }
  for (const repaint of page.repaint) repaint();
};

page.drawn = (async () => {
  const items = JSON.parse(document.getElementById("charts").textContent);
  for (const [name, item] of Object.entries(items)) {
    const views = await Bokeh.embed.embed_item(item, name);
    page.views.set(name, views.roots[0] ?? [...views][0]);
  }
  page.paint();
})();

dark.addEventListener("change", page.paint);
addEventListener("beforeprint", () => {
  for (const gallery of galleries.values()) gallery.all();
  printing = true;
  page.paint();
});
addEventListener("afterprint", () => {
  printing = false;
  page.paint();
});
