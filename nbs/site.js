// What the site adds to its pages. `.ci/docs.py` puts this file into each of them.

// A region that scrolls can be reached with the keyboard.
const reachable = () => {
  for (const e of document.querySelectorAll("main pre, .sd-table, .cell-output-display, .math.display, .table-responsive"))
    if (e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight) e.tabIndex = 0;
    else e.removeAttribute("tabindex");
};
addEventListener("load", reachable);
addEventListener("resize", reachable);

// The sidebar shows where one is, also in a long list; the page itself stays where it is.
const here = document.querySelector("#quarto-sidebar [aria-current]");
addEventListener("load", () => {
  const bar = here && here.closest("#quarto-sidebar");
  if (bar && here.getBoundingClientRect().bottom > bar.getBoundingClientRect().bottom)
    bar.scrollTop += here.getBoundingClientRect().top - bar.getBoundingClientRect().top - bar.clientHeight / 2;
});

// A number with its interval stays on one line; a sentence in a cell does not.
for (const td of document.querySelectorAll("main table.dataframe td")) if (td.textContent.length < 30) td.classList.add("short");

// The search looks for each word of a question by itself; guides, figures and tables stand above the library.
const SMALL = new Set("a am an and are be can do does for from how i if in is it me my of on or so that the this to was what when which who why with you your".split(" "));
if (window.Fuse) {
  const Fuse = window.Fuse;
  window.Fuse = class {
    constructor(index, options) {
      this.fuse = new Fuse(index, { ...options, includeScore: true, threshold: 0.2 });
    }
    search(text, { limit }) {
      const all = text.toLowerCase().match(/[\p{L}\p{N}_@.-]+/gu) || [], words = all.filter(w => !SMALL.has(w));
      const found = new Map();
      for (const word of words.length ? words : all)
        for (const { item, score } of this.fuse.search(word)) {
          const head = `${item.title} ${item.section}`.toLowerCase();
          const value = 1 - score + (head.split(/[^\p{L}\p{N}_]+/u).includes(word) ? 1 : 0);
          found.set(item, (found.get(item) || 0) + value);
        }
      const rank = ([item, value]) => value * (/(^|\/)api\//.test(item.href) ? 1 : 2);
      return [...found].sort((a, b) => rank(b) - rank(a)).slice(0, limit).map(([item]) => ({ item }));
    }
  };
}
