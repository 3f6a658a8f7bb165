"use strict";
document.querySelectorAll("table.sortable").forEach(function (table) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach(function (head, column) {
    head.tabIndex = 0;
    head.style.cursor = "pointer";
    if (!head.title) { head.title = "Sort"; }
    function sort() {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map(function (row) {
        const text = row.cells[column].textContent.trim();
        const number = Number(text);
        return { row: row, text: text, number: text === "" ? NaN : number };
      });
      rows.sort(function (a, b) {
        const missing = (a.text === "n/a") - (b.text === "n/a");
        if (missing) { return missing; }
        const both = !isNaN(a.number) && !isNaN(b.number);
        const order = both ? a.number - b.number
          : a.text.localeCompare(b.text, "en", { numeric: true });
        return up ? order : -order;
      });
      rows.forEach(function (entry) { body.appendChild(entry.row); });
    }
    head.addEventListener("click", sort);
    head.addEventListener("keydown", function (event) {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
});
