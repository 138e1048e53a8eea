"use strict";
// Columns of numbers sort, best first; a second click turns the order round.
for (const table of document.querySelectorAll("table.wide")) {
  const [head, ...rows] = table.rows;
  const value = (row, i) => Number.parseFloat((row.cells[i]?.firstChild?.textContent ?? "").replace(/,/g, "").replace("−", "-"));
  [...head.cells].forEach((cell, i) => {
    if (!i || rows.filter((row) => Number.isFinite(value(row, i))).length < 2) return;
    cell.tabIndex = 0;
    cell.classList.add("sorts");
    cell.title = "Sort by this column";
    const sort = () => {
      const isRising = cell.getAttribute("aria-sort") === "descending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", isRising ? "ascending" : "descending");
      const of = (row) => { const x = value(row, i); return Number.isFinite(x) ? x : -Infinity; };
      // Shares of another row keep their place below all rows.
      const isShare = (row) => row.classList.contains("share");
      head.parentElement.append(...[...rows].sort((a, b) => isShare(a) - isShare(b) || (isRising ? 1 : -1) * (of(a) - of(b))));
    };
    cell.addEventListener("click", sort);
    cell.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    });
  });
}
const users = [...document.querySelectorAll(".user")], wanted = document.getElementById("user-query");
if (wanted) {
  const FIRST = 6;
  const search = () => {
    const words = wanted.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const user of users) {
      const text = user.textContent.toLowerCase();
      user.hidden = !(words.every((word) => text.includes(word)) && (words.length || shown < FIRST));
      shown += !user.hidden;
    }
    document.getElementById("users-found").textContent = words.length ? `${shown} of ${users.length} users` : `${shown} of ${users.length} users shown; search to see the others`;
  };
  wanted.closest("p").hidden = false;
  wanted.addEventListener("input", search);
  search();
}
const packed = document.getElementById("tree-data");
if (packed) {
  // Drawn when it comes into view: a page of 100,000 items opens at once.
  const container = document.getElementById("tree");
  const watch = new IntersectionObserver(async (entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    window.shownTree = codeTree.show(container, await codeTree.unpack(packed.textContent.trim()));
  }, { rootMargin: "400px" });
  watch.observe(container);
}
