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
const bar = document.querySelector("#quarto-sidebar"), here = bar && bar.querySelector("[aria-current]");
const showHere = () => {
  if (!here) return;
  const [one, all] = [here.getBoundingClientRect(), bar.getBoundingClientRect()];
  if (one.top < all.top || one.bottom > all.bottom) bar.scrollTop += one.top - all.top - bar.clientHeight / 2;
};
addEventListener("load", showHere);

// On a narrow screen a button opens the sidebar, and Escape closes it.
for (const button of bar ? document.querySelectorAll(".quarto-btn-toggle") : []) {
  const said = () => button.setAttribute("aria-expanded", bar.classList.contains("show"));
  said();
  button.addEventListener("click", showHere);
  new MutationObserver(said).observe(bar, { attributeFilter: ["class"] });
  bar.addEventListener("keydown", e => {
    if (e.key !== "Escape" || !bar.classList.contains("show")) return;
    button.click();
    button.focus();
  });
}

// What opens a section of the sidebar is reached with the keyboard: its name, or its arrow if the name is a link.
for (const a of document.querySelectorAll("#quarto-sidebar a[data-bs-toggle]:not([href])")) {
  const name = a.parentElement.firstElementChild, twice = a !== name && !name.hasAttribute("href");
  a.setAttribute("role", "button");
  a.tabIndex = twice ? -1 : 0;
  if (twice) a.setAttribute("aria-hidden", "true");
  else if (a !== name) a.setAttribute("aria-label", `Section ${name.textContent}`);
  a.addEventListener("keydown", e => {
    if (e.key !== "Enter" && e.key !== " ") return;
    e.preventDefault();
    a.click();
  });
}

// The name of an option or a file is not broken at a hyphen or slash, if it is short.
const WHOLE = /([^\s=,]*[-\/][^\s=,]*)/, texts = [];
for (const code of document.querySelectorAll("main :not(pre) > code, main pre.sh > code"))
  for (const walk = document.createTreeWalker(code, NodeFilter.SHOW_TEXT); walk.nextNode();)
    if (WHOLE.test(walk.currentNode.data)) texts.push(walk.currentNode);
for (const text of texts)
  text.replaceWith(...text.data.split(WHOLE).map((word, k) => {
    if (k % 2 === 0 || word.length > 30) return word;
    return Object.assign(document.createElement("span"), { className: "whole", textContent: word });
  }));

// What was printed wraps, unless runs of spaces within its lines align it.
for (const pre of document.querySelectorAll(".cell-output-stdout pre"))
  if (!/\S {2,}\S/.test(pre.textContent)) pre.classList.add("wraps");

// A number with its interval stays on one line; a sentence in a cell does not.
for (const td of document.querySelectorAll("main table.dataframe td")) if (td.textContent.length < 30) td.classList.add("short");

// The search looks for each word of a question by itself, and for what else it is called. Guides, figures and tables stand
// above the library, pages above their sections, and a page has two places at most.
const SMALL = new Set("a am an and are be can do does for from how i if in is it me my of on or so that the this to was what when which who why with you your".split(" "));
const ALSO = { tau: ["τ", "threshold"], par: ["perturb and recover", "method"], backdoored: ["audit"], poisoned: ["audit"], defence: ["cleaner"], defense: ["cleaner"] };
const PLACES = 2;
if (window.Fuse) {
  const Fuse = window.Fuse;
  window.Fuse = class {
    constructor(index, options) {
      this.fuse = new Fuse(index, { ...options, keys: [...options.keys, { name: "about", weight: 1 }], includeScore: true, threshold: 0.2 });
    }
    add(entry) { // Quarto's search fills an empty index
      this.fuse.add(entry);
    }
    value(word) { // entry -> how well it fits
      const found = new Map();
      for (const { item, score } of this.fuse.search(word)) {
        const head = ` ${`${item.title} ${item.section} ${item.about || ""}`.toLowerCase().split(/[^\p{L}\p{N}_]+/u).join(" ")} `;
        const named = item.section.toLowerCase().split(", ").includes(word); // a function, or an entry of the glossary
        found.set(item, 1 - score + (head.includes(` ${word} `) ? 1 : 0) + (named ? 1 : 0));
      }
      return found;
    }
    search(text, { limit = 50 } = {}) {
      const all = text.toLowerCase().match(/[\p{L}\p{N}_@.-]+/gu) || [], words = all.filter(w => !SMALL.has(w));
      const sum = new Map(), places = new Map();
      for (const word of words.length ? words : all)
        for (const [form, weight] of [[word, 1], ...(Object.hasOwn(ALSO, word) ? ALSO[word] : []).map(w => [w, 0.5])])
          for (const [item, value] of this.value(form)) sum.set(item, (sum.get(item) || 0) + weight * value);
      const rank = ([item, value]) => value * (/(^|\/)api\//.test(item.href) ? 1 : 2) + (item.section ? 0 : 0.5);
      const first = ([item]) => {
        const page = item.href.split("#")[0], n = (places.get(page) || 0) + 1;
        places.set(page, n);
        return n <= PLACES;
      };
      return [...sum].sort((a, b) => rank(b) - rank(a)).filter(first).slice(0, limit).map(([item]) => ({ item }));
    }
  };
}

// A result on this page closes the list and the menu, and so does leaving the box. Enter also counts before results are there.
const box = document.querySelector(".navbar .smalldocs-search");
if (box) {
  const list = box.querySelector(".smalldocs-search-results"), input = box.querySelector("input");
  let waiting = false;
  const first = () => list.querySelector("a");
  const close = () => {
    list.classList.remove("show");
    const menu = document.querySelector(".navbar-collapse.show");
    if (menu && window.bootstrap) bootstrap.Collapse.getOrCreateInstance(menu).hide();
  };
  list.addEventListener("click", e => { if (e.target.closest("a")) close(); });
  box.addEventListener("focusout", e => { if (e.relatedTarget && !box.contains(e.relatedTarget)) list.classList.remove("show"); });
  input.addEventListener("keydown", e => { waiting = e.key === "Enter" && input.value.trim() !== "" && !first(); });
  new MutationObserver(() => { if (waiting && first()) { waiting = false; first().click(); } }).observe(list, { childList: true, subtree: true });
}

// Paper is white: the light theme is printed.
const themes = [...document.querySelectorAll("link.quarto-color-scheme")], root = document.documentElement;
let was = null;
addEventListener("beforeprint", () => {
  was = { dark: root.classList.contains("quarto-dark"), media: themes.map(l => l.media) };
  for (const l of themes) l.media = l.dataset.mode === "light" ? "all" : "not all";
  root.classList.remove("quarto-dark");
});
addEventListener("afterprint", () => {
  if (!was) return;
  themes.forEach((l, k) => { l.media = was.media[k]; });
  root.classList.toggle("quarto-dark", was.dark);
  was = null;
});
