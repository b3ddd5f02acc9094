// Tables can be sorted by a click on a head; without scripts they are as they were written.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") === "descending" || (place === 0 && !head.hasAttribute("aria-sort"));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const number = (row) => Number.parseFloat(row.cells[place].dataset.value);
      const text = (row) => row.cells[place].textContent;
      const compare = (one, other) => {
        if (place === 0) return (ascending ? 1 : -1) * text(one).localeCompare(text(other), undefined, {numeric: true});
        const [left, right] = [number(one), number(other)];
        if (Number.isNaN(left) || Number.isNaN(right)) return Number.isNaN(left) - Number.isNaN(right);
        return ascending ? left - right : right - left;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
