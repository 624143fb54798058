// Formulas: of the pages as arithmatex leaves them, of the notebooks between dollar signs.
document$.subscribe(({ body }) => {
  const delimiters = [
    { left: "$$", right: "$$", display: true },
    { left: "\\[", right: "\\]", display: true },
    { left: "\\(", right: "\\)", display: false },
  ]
  const options = { throwOnError: false, ignoredClasses: ["highlight"] }
  for (const element of body.querySelectorAll(".arithmatex"))
    renderMathInElement(element, { ...options, delimiters })
  for (const element of body.querySelectorAll(".jupyter-wrapper .jp-MarkdownOutput"))
    renderMathInElement(element, {
      ...options,
      delimiters: [...delimiters, { left: "$", right: "$", display: false }],
    })
  // A box that scrolls takes the focus, so that the arrow keys scroll it.
  for (const box of body.querySelectorAll(".md-typeset__scrollwrap, .highlight-ipynb, div.arithmatex"))
    box.tabIndex = 0
})
