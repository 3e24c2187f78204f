"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const positions = data.positions.map((text) => new Uint16Array(bytes(text)));
  const colours = data.colours.map((c) => ({
    name: c.name, names: c.names, values: c.names ? new Int16Array(bytes(c.values)) : new Float32Array(bytes(c.values)),
  }));
  const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6bb1", "#b8a100", "#a6611a", "#17a2a2"];
  const REST = "#8a929a", STEPS = 9, NOWHERE = 65535, FOUND = 20;
  const canvas = element("map"), tip = element("tip"), search = element("search");
  const lower = data.ids.map((id) => id.toLowerCase());
  let layer = data.layer, colour = colours.length ? 0 : -1, chosen = -1, matches = null, hidden = new Set(), places = null;

  const ramp = (share) => `hsl(${250 - 200 * share} 75% ${45 + 10 * share}%)`;
  const range = (values) => {
    const known = Float32Array.from(values.filter(Number.isFinite)).sort();
    return [known[Math.floor(known.length * 0.02)] ?? 0, known[Math.floor((known.length - 1) * 0.98)] ?? 1];
  };
  for (const c of colours) if (!c.names) c.range = range(c.values);

  // The group of a point: what the legend shows, and what is hidden together.
  const group = (point) => {
    if (colour < 0) return 0;
    const c = colours[colour], value = c.values[point];
    if (c.names) return value < 0 ? -1 : Math.min(value, PALETTE.length);
    if (!Number.isFinite(value)) return -1;
    const [low, high] = c.range;
    return Math.max(0, Math.min(STEPS - 1, Math.floor((STEPS * (value - low)) / (high - low || 1))));
  };
  const paint = (g) => {
    if (colour < 0) return PALETTE[0];
    if (g < 0 || (colours[colour].names && g >= PALETTE.length)) return REST;
    return colours[colour].names ? PALETTE[g] : ramp(g / (STEPS - 1));
  };
  const visible = (point) => positions[layer][2 * point] !== NOWHERE && !hidden.has(group(point));

  const draw = () => {
    const scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d"), count = data.ids.length, xy = positions[layer];
    const radius = count > 5000 ? 1.6 : count > 500 ? 2.6 : 4.5;
    context.scale(scale, scale);
    places = new Float32Array(2 * count);
    const groups = new Map();
    for (let point = 0; point < count; point++) {
      places[2 * point] = 8 + ((width - 16) * xy[2 * point]) / 65534;
      places[2 * point + 1] = 8 + (height - 16) * (1 - xy[2 * point + 1] / 65534);
      if (!visible(point)) continue;
      const g = group(point);
      if (!groups.has(g)) groups.set(g, []);
      groups.get(g).push(point);
    }
    const dots = (points, r) => {
      context.beginPath();
      for (const point of points) {
        const x = places[2 * point], y = places[2 * point + 1];
        context.moveTo(x + r, y);
        context.arc(x, y, r, 0, 7);
      }
      context.fill();
    };
    for (const [g, points] of [...groups].sort((a, b) => b[1].length - a[1].length)) {
      context.fillStyle = paint(g);
      context.globalAlpha = matches ? 0.15 : 0.75;
      dots(points, radius);
      context.globalAlpha = 1;
      if (matches) dots(points.filter((point) => matches.has(point)), radius + 1.5);
    }
    if (chosen >= 0 && xy[2 * chosen] !== NOWHERE) {
      context.strokeStyle = getComputedStyle(document.body).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(places[2 * chosen], places[2 * chosen + 1], radius + 5, 0, 7);
      context.stroke();
    }
  };

  const describe = (point) => {
    const parts = colours.map((c) => {
      const value = c.values[point];
      if (c.names) return value < 0 ? null : `${c.name}: ${c.names[value]}`;
      return Number.isFinite(value) ? `${c.name}: ${value.toFixed(1)}` : null;
    });
    return [data.ids[point], ...parts.filter(Boolean)].join(" \u00b7 ");
  };
  const showTip = (point) => {
    tip.hidden = point < 0 || positions[layer][2 * point] === NOWHERE;
    if (tip.hidden) return;
    tip.textContent = describe(point);
    const right = canvas.clientWidth - tip.offsetWidth, x = places[2 * point], y = places[2 * point + 1];
    tip.style.left = `${Math.max(0, Math.min(right, x + 10))}px`;
    tip.style.top = `${y + 24 + tip.offsetHeight > canvas.clientHeight ? Math.max(0, y - tip.offsetHeight - 8) : y + 24}px`;
  };
  const choose = (point) => {
    chosen = point;
    const nowhere = point >= 0 && positions[layer][2 * point] === NOWHERE;
    element("chosen").textContent = point < 0 ? "" : describe(point) + (nowhere ? " \u00b7 no place on this map" : "");
    draw();
    showTip(point);
  };
  const nearest = (x, y, most, wanted = () => true) => {
    let best = -1, least = most * most;
    for (let point = 0; point < data.ids.length; point++) {
      const dx = places[2 * point] - x, dy = places[2 * point + 1] - y, distance = dx * dx + dy * dy;
      if (distance < least && visible(point) && wanted(dx, dy, point)) [best, least] = [point, distance];
    }
    return best;
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    return nearest(event.clientX - box.left - 1, event.clientY - box.top - 1, 16);
  };
  canvas.addEventListener("pointermove", (event) => { const point = under(event); showTip(point < 0 ? chosen : point); });
  canvas.addEventListener("pointerleave", () => showTip(chosen));
  canvas.addEventListener("click", (event) => choose(under(event)));
  const TOWARDS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choose(-1);
    const towards = TOWARDS[event.key];
    if (!towards) return;
    event.preventDefault();
    if (chosen < 0 || !visible(chosen)) return choose(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2, Infinity));
    const ahead = (dx, dy, point) => point !== chosen && dx * towards[0] + dy * towards[1] > Math.abs(dx * towards[1] + dy * towards[0]);
    const next = nearest(places[2 * chosen], places[2 * chosen + 1], Infinity, ahead);
    if (next >= 0) choose(next);
  });

  const button = (text, act) => {
    const item = document.createElement("li"), made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", act);
    item.append(made);
    return [item, made];
  };
  const legend = () => {
    element("legend").replaceChildren();
    hidden = new Set();
    if (colour < 0) return;
    const counts = new Map(), c = colours[colour];
    for (let point = 0; point < data.ids.length; point++) counts.set(group(point), (counts.get(group(point)) ?? 0) + 1);
    const step = c.names ? 0 : (c.range[1] - c.range[0]) / STEPS;
    for (const g of [...counts.keys()].sort((a, b) => (a < 0) - (b < 0) || a - b)) {
      let name = g < 0 ? "not known" : c.names ? c.names[g] : (c.range[0] + g * step).toPrecision(3) + " to " + (c.range[0] + (g + 1) * step).toPrecision(3);
      if (c.names && g >= PALETTE.length) name = `${c.names.length - PALETTE.length} others`;
      const [item, made] = button(`${name} (${counts.get(g)})`, () => {
        if (!hidden.delete(g)) hidden.add(g);
        made.setAttribute("aria-pressed", String(!hidden.has(g)));
        draw();
      });
      made.setAttribute("aria-pressed", "true");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = paint(g);
      made.prepend(swatch);
      element("legend").append(item);
    }
  };
  const find = () => {
    const text = search.value.trim().toLowerCase();
    element("found").replaceChildren();
    matches = null;
    element("matches").textContent = "";
    if (text) {
      matches = new Set();
      lower.forEach((id, point) => { if (id.includes(text)) matches.add(point); });
      const more = matches.size > FOUND ? `, the first ${FOUND}:` : "";
      element("matches").textContent = `${matches.size} of ${data.ids.length} tracks found${more}`;
      for (const point of [...matches].slice(0, FOUND)) element("found").append(button(data.ids[point], () => choose(point))[0]);
    }
    draw();
  };
  element("layer").addEventListener("change", (event) => { layer = Number(event.target.value); choose(chosen); });
  element("colour").addEventListener("change", (event) => { colour = Number(event.target.value); legend(); draw(); });
  search.addEventListener("input", find);
  for (const track of document.querySelectorAll("button.track")) {
    track.addEventListener("click", () => { choose(Number(track.dataset.point)); canvas.scrollIntoView({ block: "center" }); canvas.focus({ preventScroll: true }); });
  }

  document.querySelectorAll("canvas.picture").forEach((picture, number) => {
    const { size, values } = data.pictures[number], levels = new Uint8Array(bytes(values));
    const context = picture.getContext("2d"), image = context.createImageData(size, size);
    levels.forEach((level, place) => {
      const share = level / 127.5 - 1, fade = 1 - Math.abs(share);
      const end = share < 0 ? [20, 60, 140] : [150, 20, 30];
      for (let channel = 0; channel < 3; channel++) image.data[4 * place + channel] = end[channel] + (247 - end[channel]) * fade;
      image.data[4 * place + 3] = 255;
    });
    context.putImageData(image, 0, 0);
  });
  const again = () => { draw(); showTip(chosen); };
  new ResizeObserver(again).observe(canvas);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) window.matchMedia(query).addEventListener("change", again);
  legend();
  draw();
})();
