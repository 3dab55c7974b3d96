for (const graph of document.querySelectorAll("svg.graph")) {
  const nodes = [...graph.querySelectorAll(".node")];
  const edges = [...graph.querySelectorAll(".edge")];
  const told = [...document.getElementById(graph.dataset.told).children];
  const choose = (node) => {
    const on = node.getAttribute("aria-pressed") !== "true";
    nodes.forEach((other) => other.setAttribute("aria-pressed", String(on && other === node)));
    graph.classList.toggle("one", on);
    edges.forEach((edge) => edge.classList.toggle("on", on && [edge.dataset.from, edge.dataset.to].includes(node.dataset.n)));
    told.forEach((item) => { item.hidden = !on || item.dataset.n !== node.dataset.n; });
    const card = node.dataset.card && document.getElementById(node.dataset.card);
    if (on && card) card.open = true;
  };
  for (const node of nodes) {
    node.addEventListener("click", () => choose(node));
    node.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(node);
    });
  }
}
