"use strict";
// Pictures that answer the pointer and the keyboard, and a filter over the incidents. Without it the page reads as well:
// what a path shows is read back from the path and the axes that its figure names, so nothing stands in the page twice.
(() => {
  const WIDTH = 10000, HEIGHT = 10000, CLOSEST = 100;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // The strokes [x1, y1, x2, y2] of a path: `M x y h w` is one of its own, `l dx dy` goes on from where the last one ended.
  function strokesOf(path) {
    const strokes = [];
    let x = 0, y = 0;
    for (const [, letter, a, b] of (path?.getAttribute("d") ?? "").matchAll(/([Mlh])(-?\d+) ?(-?\d+)?/g)) {
      const [toX, toY] = letter === "M" ? [Number(a), Number(b)] : [x + Number(a), y + Number(b ?? 0)];
      if (letter !== "M") strokes.push([x, y, toX, toY]);
      [x, y] = [toX, toY];
    }
    return strokes;
  }

  // The height of a line at x; null where nothing is drawn there.
  function heightAt(strokes, x) {
    const stroke = strokes.findLast(([from, , to]) => from <= x && x <= to);
    if (!stroke) return null;
    const [x1, y1, x2, y2] = stroke;
    return x2 === x1 ? y2 : y1 + ((y2 - y1) * (x - x1)) / (x2 - x1);
  }

  // A panel: what it is called, where its lines are, and what a height in it stands for.
  function readPanel(panel) {
    const svg = panel.querySelector("svg"), ticks = [...panel.querySelectorAll(".y span")];
    const [low, high] = [Number(svg.dataset.low), Number(svg.dataset.high)];
    const digits = clamp(Math.floor(-Math.log10((high - low) / HEIGHT)), 0, 12);
    const nearest = (y) => ticks.reduce((a, b) => (
      Math.abs(parseFloat(b.style.top) * 100 - y) < Math.abs(parseFloat(a.style.top) * 100 - y) ? b : a
    )).textContent;
    const value = (y) => (high - (y / HEIGHT) * (high - low)).toLocaleString("en", {maximumFractionDigits: digits});
    const spot = document.createElementNS(svg.namespaceURI, "path");
    spot.setAttribute("class", "spot");
    svg.append(spot);
    return {
      svg, spot,
      name: panel.querySelector(".name b").textContent,
      observed: strokesOf(svg.querySelector(".observed")),
      expected: strokesOf(svg.querySelector(".expected")),
      word: "low" in svg.dataset ? value : nearest,
      out: panel.querySelector(".name").appendChild(make("span", {className: "read"})),
    };
  }

  function enliven(figure) {
    const {start, times, edge, zone} = figure.dataset;
    const seconds = times.split(" ").map(Number), margin = Number(edge);
    const clock = new Intl.DateTimeFormat("sv", {timeZone: zone, dateStyle: "short", timeStyle: "medium"});
    const timeAt = (x) => {
      const place = clamp((x - margin) / (WIDTH - 2 * margin || 1), 0, 1) * (seconds.length - 1), i = Math.floor(place);
      const passed = seconds[i] + (place - i) * ((seconds[i + 1] ?? seconds[i]) - seconds[i]);
      return clock.format(new Date((Number(start) + passed) * 1000));
    };
    let panels, moments;
    let [left, right, at, dragged] = [0, WIDTH, null, null];

    const line = make("i", {className: "line"}), band = make("i", {className: "band"}), stamp = make("b", {});
    const probe = make("div", {className: "probe", tabIndex: 0}, band, line, stamp);
    for (const [name, value] of Object.entries({
      role: "slider", "aria-label": "moment in the picture: arrow keys move, plus and minus zoom, Escape shows all",
      "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0, "aria-valuetext": "none chosen",
    })) probe.setAttribute(name, value);
    const axis = figure.querySelector(".x"), labels = [...axis.childNodes];
    figure.querySelector(".panels").append(probe);

    const placeOf = (event) => {
      const box = probe.getBoundingClientRect();
      return left + clamp((event.clientX - box.left) / box.width, 0, 1) * (right - left);
    };
    const percent = (x) => `${((x - left) / (right - left)) * 100}%`;

    function read() {
      panels ??= [...figure.querySelectorAll(".panel")].map(readPanel);
      moments ??= [...new Set(panels.flatMap(({observed}) => observed.map((s) => s[2])))].sort((a, b) => a - b);
    }

    function show(index) {
      read();
      at = index === null || !moments.length ? null : clamp(index, 0, moments.length - 1);
      figure.classList.toggle("read", at !== null);
      if (at === null) return;
      const x = moments[at], words = [];
      for (const {spot, name, observed, expected, word, out} of panels) {
        const [seen, due] = [heightAt(observed, x), heightAt(expected, x)];
        spot.setAttribute("d", seen === null ? "" : `M${x} ${seen}h0`);
        out.textContent = (seen === null ? "nothing" : word(seen)) + (due === null ? "" : `, expected ${word(due)}`);
        words.push(`${name} ${out.textContent}`);
      }
      stamp.textContent = timeAt(x);
      probe.style.setProperty("--at", percent(x));
      stamp.style.transform = `translateX(-${percent(x)})`;
      probe.setAttribute("aria-valuenow", Math.round((x / WIDTH) * 100));
      probe.setAttribute("aria-valuetext", `${stamp.textContent} ${zone}: ${words.join("; ")}`);
    }

    // The moment that lies nearest to x.
    function nearest(x) {
      read();
      return moments.reduce((best, moment, i) => (Math.abs(moment - x) < Math.abs(moments[best] - x) ? i : best), 0);
    }

    function look(from, to) {
      read();
      const width = clamp(to - from, CLOSEST, WIDTH);
      left = clamp(from, 0, WIDTH - width);
      right = left + width;
      for (const {svg} of panels) svg.setAttribute("viewBox", `${left} 0 ${width} ${HEIGHT}`);
      const whole = width === WIDTH;
      figure.classList.toggle("zoomed", !whole);
      const spans = [0.1, 0.5, 0.9].map((part) => {
        const [day, time] = timeAt(left + part * width).split(" ");
        return make("span", {style: `left:${part * 100}%`}, time, make("br", {}), day);
      });
      axis.replaceChildren(...(whole ? labels : spans));
      show(at !== null && moments[at] >= left && moments[at] <= right ? at : null);
    }

    function zoom(factor) {
      read();
      const width = (right - left) * factor, middle = at === null ? (left + right) / 2 : moments[at];
      const share = at === null ? 0.5 : (middle - left) / (right - left);
      look(middle - width * share, middle + width * (1 - share));
    }

    function step(by) {
      const next = clamp((at ?? nearest((left + right) / 2)) + by, 0, moments.length - 1);
      const [x, width] = [moments[next], right - left];
      if (x < left || x > right) look(x - width / 2, x + width / 2);
      show(next);
    }

    const whole = () => look(0, WIDTH);
    const keys = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowDown: () => step(-1), ArrowUp: () => step(1),
      PageDown: () => step(-10), PageUp: () => step(10), Home: () => step(-Infinity), End: () => step(Infinity),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), Escape: whole,
    };
    probe.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    probe.addEventListener("pointerdown", (event) => {
      if (event.button || event.pointerType === "touch") return;
      dragged = placeOf(event);
      probe.setPointerCapture(event.pointerId);
    });
    probe.addEventListener("pointermove", (event) => {
      const x = placeOf(event);
      show(nearest(x));
      if (dragged === null) return;
      const [from, to] = [Math.min(dragged, x), Math.max(dragged, x)];
      band.style.cssText = `left:${percent(from)};width:${((to - from) / (right - left)) * 100}%`;
    });
    probe.addEventListener("pointerup", (event) => {
      const x = placeOf(event), from = dragged;
      [dragged, band.style.cssText] = [null, ""];
      if (from !== null && Math.abs(x - from) > (right - left) / 40) look(Math.min(from, x), Math.max(from, x));
      else show(nearest(x));
    });
    probe.addEventListener("pointercancel", () => { [dragged, band.style.cssText] = [null, ""]; });
    probe.addEventListener("pointerleave", () => { if (document.activeElement !== probe) show(null); });
    probe.addEventListener("focus", () => step(0));
    probe.addEventListener("blur", () => show(null));
    probe.addEventListener("dblclick", whole);

    const button = (text, label, act) => {
      const made = make("button", {type: "button", title: label}, text);
      made.setAttribute("aria-label", label);
      made.addEventListener("click", act);
      return made;
    };
    figure.querySelector("figcaption").append(make("span", {className: "zoom"},
      button("−", "zoom out", () => zoom(2)), button("+", "zoom in", () => zoom(0.5)), button("⟲", "show all", whole)));
  }

  // A box that shows only those incidents, and their cards, in which all of its words occur.
  function filter(section) {
    const rows = [...section.querySelectorAll("tbody tr")].map((row) => {
      const link = row.querySelector("a[href^='#']"), card = link && document.getElementById(link.hash.slice(1));
      return {text: row.textContent.toLowerCase(), parts: card ? [row, card.closest("details")] : [row]};
    });
    const box = make("input", {type: "search", autocomplete: "off", placeholder: section.dataset.filter});
    const told = make("output", {}), fold = section.querySelector("details");
    box.addEventListener("input", () => {
      const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const {text, parts} of rows) {
        const kept = wanted.every((word) => text.includes(word));
        for (const part of parts) part.hidden = !kept;
        count += kept;
      }
      if (fold && wanted.length) fold.open = true;
      told.textContent = wanted.length ? `${count} of ${rows.length}` : "";
    });
    section.querySelector("h2").after(make("p", {className: "filter"}, make("label", {}, "Show only ", box), told));
  }

  // A link to what is folded unfolds it.
  function unfold() {
    const fold = document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details");
    if (fold) fold.open = true;
  }

  for (const figure of document.querySelectorAll("figure[data-times]")) enliven(figure);
  for (const section of document.querySelectorAll("[data-filter]")) filter(section);
  addEventListener("hashchange", unfold);
  unfold();
})();
