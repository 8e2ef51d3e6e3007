// The theme that was chosen, before anything is drawn.
(() => {
  try {
    const theme = localStorage.getItem("consortia.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be closed to this page; the system's theme will do.
  }
})();
