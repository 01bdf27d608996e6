  const element = (name, attributes, parent, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const brief = value => value === 0 ? "0" : Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6
    ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : String(+value.toPrecision(4));
  const paint = (node, look) => {
    node.classList.add("series");
    node.style.setProperty("--light", look.light);
    node.style.setProperty("--dark", look.dark);
    return node;
  };
  const decades = (low, high, count) => {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    const stride = Math.max(1, Math.ceil((last - first + 1) / count));
    const found = [];
    for (let power = first; power <= last; power += stride) found.push(10 ** power);
    if (found.length > 1) return found;
    // Within one decade: the coarsest of these that has two values there.
    const finer = [[1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9]];
    let fine = [];
    for (const factors of finer) {
      fine = [];
      for (let power = first - 1; power <= last; power++) for (const factor of factors) fine.push(+(factor * 10 ** power).toPrecision(2));
      fine = fine.filter(value => value >= low && value <= high);
      if (fine.length > 1) break;
    }
    return fine;
  };
  const nearest = (places, x, y, reach) => {
    let best = null, distance = reach ** 2;
    for (const place of places) {
      const d = (place.x - x) ** 2 + (place.y - y) ** 2;
      if (d < distance) best = place, distance = d;
    }
    return best;
  };
  const tell = (tip, plot, place, name, lines) => {
    if (!place) { tip.style.display = "none"; return; }
    const strong = document.createElement("strong");
    strong.textContent = name;
    tip.replaceChildren(strong, ...lines.flatMap(text => [document.createElement("br"), text]));
    tip.style.display = "block";
    const room = plot.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, place.x + 12 > room ? place.x - tip.offsetWidth - 12 : place.x + 12))}px`;
    tip.style.top = `${Math.max(0, place.y - tip.offsetHeight - 8)}px`;
  };
