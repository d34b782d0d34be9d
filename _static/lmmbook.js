/* What scrolls sideways can be reached by the keyboard, too. The theme sees to some of it, but not
   to tables in the text, nor to what lies in a fold that is opened later. */
document.addEventListener("DOMContentLoaded", () => {
  const article = document.querySelector("article");
  if (!article) return;
  new ResizeObserver(() => {
    for (const box of article.querySelectorAll("pre, .output, .pst-scrollable-table-container")) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }).observe(article);
});

/* Paper is white, whatever the theme on the screen. */
matchMedia("print").addEventListener("change", (print) => {
  const html = document.documentElement;
  if (print.matches) html.dataset.screenTheme = html.dataset.theme;
  html.dataset.theme = print.matches ? "light" : html.dataset.screenTheme;
});
