// Subjects: the strength of the map, and going from one to the next in the order of the table.
(() => {
  document.addEventListener("input", (event) => {
    if (!event.target.matches(".strength input")) return;
    const subject = event.target.closest(".subject");
    subject.style.setProperty("--map", event.target.value / 100);
  });

  // By the address: `:target` is not known yet while the page is read.
  const open = () =>
    /^#s\d+$/.test(location.hash) ? document.querySelector(location.hash)
    : document.querySelector(".alone .subject");

  // The rows that the table shows, in its order, give the subjects before and after.
  const steps = (subject) => {
    const rows = [...document.querySelectorAll(".cases tbody tr:not(.out) th a[href^='#s']")];
    const at = rows.findIndex((link) => link.getAttribute("href") === `#${subject.id}`);
    if (at < 0) return;
    for (const [name, row] of [["before", rows[at - 1]], ["after", rows[at + 1]]]) {
      const link = subject.querySelector(`.steps .${name}`);
      if (link) link.hidden = !row;
      if (link && row) link.setAttribute("href", row.getAttribute("href"));
    }
  };

  const arrive = () => {
    const subject = open();
    if (!subject || document.querySelector(".alone")) return;
    const packed = subject.querySelector(":scope > noscript");
    if (packed) subject.innerHTML = packed.textContent;
    steps(subject);
    subject.focus({ preventScroll: true });
    subject.scrollIntoView();
  };

  document.addEventListener("keydown", (event) => {
    const subject = open();
    if (!subject || event.target.matches("input, select, textarea") || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    const name = { ArrowLeft: "before", ArrowRight: "after", Escape: "back" }[event.key];
    const link = name && subject.contains(event.target) && subject.querySelector(`.steps .${name}`);
    if (!link || link.hidden || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    link.click();
  });
  window.addEventListener("hashchange", arrive);
  window.addEventListener("load", arrive);
})();
