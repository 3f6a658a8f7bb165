"use strict";
// Sort, filter and colour the images of a group report.
(function () {
  const SVG = "http://www.w3.org/2000/svg";
  // Told apart by all eyes (Okabe and Ito); further groups share grey.
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1",
    "#a65628"];

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
    heads.forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", function () {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...body.rows].map(function (row) {
          const text = row.cells[column].textContent.trim();
          return { row: row, text: text, number: text === "" ? NaN : Number(text) };
        });
        rows.sort(function (a, b) {
          const missing = (a.text === "n/a") - (b.text === "n/a");
          if (missing) { return missing; }
          const both = !isNaN(a.number) && !isNaN(b.number);
          const order = both ? a.number - b.number
            : a.text.localeCompare(b.text, "en", { numeric: true });
          return up ? order : -order;
        });
        body.append(...rows.map(function (entry) { return entry.row; }));
      });
    });
  }

  function explorable(section) {
    const table = section.querySelector("table"), heads = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows], strips = [...section.querySelectorAll(".strip")];
    const holder = section.querySelector(".strips");
    const data = holder ? JSON.parse(holder.textContent) : [];
    const search = section.querySelector("[name=search]");
    const filters = [...section.querySelectorAll("[name=filter]")];
    const colour = section.querySelector("[name=colour]");
    const texts = rows.map((row) => (row.textContent + " " + (row.dataset.words || "")).toLowerCase());
    const column = (name) => heads.findIndex((head) => head.dataset.name === name);
    const value = (row, name) => row.cells[column(name)].textContent.trim();
    let shown = rows.map(() => true);

    let lane = () => 0, lanes = 1; // each group of a colour has a lane of its own
    const depth = () => (lanes > 1 ? 13 * lanes : 18);
    const height = (row, share) => 7 + (lanes > 1 ? 13 * lane(row) + 8 * share : 18 * share);
    const marks = (points) => points.map(([row, x, y]) =>
      `M${(10 + 600 * x).toFixed(1)} ${height(row, y).toFixed(1)}h0`).join("");

    function path(svg, points, paint) {
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("class", "dot");
      line.setAttribute("d", marks(points));
      line.style.stroke = paint;
      svg.insertBefore(line, svg.querySelector(".far"));
    }

    function stretch(svg) {
      const below = depth() + 12, place = (line, names) => names.forEach((name) =>
        line.setAttribute(name, below));
      svg.setAttribute("viewBox", `0 0 620 ${below + 14}`);
      place(svg.querySelector(".axis"), ["y1", "y2"]);
      place(svg.querySelector(".median"), ["y2"]);
      svg.querySelectorAll("text").forEach((text) => text.setAttribute("y", below + 12));
    }

    function update() {
      const words = search.value.trim().toLowerCase().split(/\s+/);
      shown = rows.map((row, index) => words.every((word) => texts[index].includes(word))
        && filters.every((filter) => !filter.value || value(row, filter.dataset.column) === filter.value));
      rows.forEach((row, index) => { row.hidden = !shown[index]; });
      const count = shown.filter(Boolean).length;
      section.querySelector(".count").textContent =
        count === rows.length ? "" : `${count} of ${rows.length} images shown`;
      const name = colour ? colour.value : "";
      const groups = name ? rows.map((row) => value(row, name)) : rows.map(() => "");
      const names = [...new Set(groups)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      const paint = (group) => COLOURS[names.indexOf(group)] || "#888888";
      section.querySelector(".legend").replaceChildren(...(name ? names : []).map(function (group) {
        const entry = document.createElement("span"), mark = document.createElement("i");
        mark.style.background = paint(group);
        entry.append(mark, `${group} (${groups.filter((g, i) => g === group && shown[i]).length})`);
        return entry;
      }));
      lanes = Math.min(names.length, COLOURS.length);
      lane = (row) => Math.min(names.indexOf(groups[row]), lanes - 1);
      strips.forEach(function (strip, index) {
        const svg = strip.querySelector("svg"), far = new Set(data[index].far);
        stretch(svg);
        svg.querySelectorAll(".dot").forEach((old) => old.remove());
        svg.querySelector(".far").setAttribute("d",
          marks(data[index].dots.filter(([row]) => shown[row] && far.has(row))));
        for (const group of names) {
          const own = data[index].dots.filter(([row]) => shown[row] && groups[row] === group);
          path(svg, own, name ? paint(group) : "var(--accent)");
        }
      });
    }

    strips.forEach(function (strip, index) {
      const svg = strip.querySelector("svg"), under = strip.querySelector(".under");
      let found = null;
      svg.addEventListener("pointermove", function (event) {
        const box = svg.getBoundingClientRect(), scale = 620 / box.width;
        const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
        let best = 8;
        found = null;
        for (const [row, across, up] of data[index].dots) {
          const distance = Math.hypot(10 + 600 * across - x, height(row, up) - y);
          if (shown[row] && distance < best) { best = distance; found = row; }
        }
        under.textContent = found === null ? "" : rows[found].cells[0].textContent.trim() + "; ";
        svg.style.cursor = found === null ? "" : "pointer";
      });
      svg.addEventListener("click", function () {
        const link = found === null ? null : rows[found].cells[0].querySelector("a");
        if (link) { location.href = link.href; }
      });
    });
    for (const field of [search, colour, ...filters]) {
      if (field) { field.addEventListener("input", update); }
    }
    section.classList.add("live");
    update();
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".contrast").forEach(explorable);
})();
