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
})
