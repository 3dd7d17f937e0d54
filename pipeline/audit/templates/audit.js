// Of an audit: proposed labels to take or to keep, and the table that comes of it.
"use strict";
page.drawn.then(() => {
  const { table, classes } = page.data;
  const boxes = [...document.querySelectorAll("input[data-row]")];
  const item = (box) => box.closest("li");
  const said = document.getElementById("taken");

  const count = () => {
    const taken = boxes.filter((box) => box.checked).length;
    for (const box of boxes) item(box).classList.toggle("taken", box.checked);
    said.textContent = `${taken.toLocaleString("en")} of ${boxes.length.toLocaleString("en")} taken`;
  };

  const check = (checked) => {
    for (const box of boxes) if (!item(box).hidden) box.checked = checked;
    count();
  };

  if (boxes.length) {
    for (const box of boxes) box.addEventListener("change", count);
    document.getElementById("take").addEventListener("click", () => check(true));
    document.getElementById("keep").addEventListener("click", () => check(false));
    document.getElementById("download").addEventListener("click", () => {
      const labels = table.label.map((number) => table.labels[number]);
      for (const box of boxes) {
        const { true: given, predicted: proposed } = item(box).dataset;
        labels[Number(box.dataset.row)] = classes[Number(box.checked ? proposed : given)];
      }
      page.downloadManifest("corrected.csv", table.path.map((path, at) => [
        path, labels[at], table.split[at], table.key[at], ...table.group.slice(at, at + 1),
      ]));
    });
    count();
  }
  document.documentElement.dataset.ready = "true";
});
