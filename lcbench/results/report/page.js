"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const MOST_BARS = 40, MOST_LINES = 10, COLOURS = 8;
  const COSTS = data.costs;

  // what is embedded by column becomes lines
  const lines = (frame) => {
    const names = Object.keys(frame);
    const count = names.length ? frame[names[0]].length : 0;
    return Array.from({ length: count }, (_, i) => Object.fromEntries(names.map((name) => [name, frame[name][i]])));
  };
  for (const section of data.sections)
    for (const name of ["scores", "seeds", "lengths", "groups", "curves"]) section[name] = lines(section[name]);

  // every text becomes a text node: names of runs and configs are never read as HTML
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  };
  const number = (text) => (text !== "" && isFinite(text) ? Number(text) : text);
  // numbers by size before words, and what is absent last
  const ordered = (a, b) => {
    const [x, y] = [number(a), number(b)];
    const rank = (v) => (v === "" ? 2 : typeof v === "number" ? 0 : 1);
    return rank(x) - rank(y) || (typeof x === "number" ? x - y : String(x).localeCompare(String(y)));
  };
  const WITHOUT = "(without)";
  const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
  const words = (name) => name.replaceAll("_", " ");
  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  let section, state;
  const choose = (index) => {
    section = data.sections[index];
    const columns = section.columns;
    const values = Object.fromEntries(columns.map((key) => [key, [...new Set(section.rows.map((row) => row.keys[key] ?? ""))].sort(ordered)]));
    section.values = values;
    // a key says something where two configurations differ in it alone
    const apart = (key) => section.rows.map((row) => JSON.stringify(columns.filter((other) => other !== key).map((other) => row.keys[other] ?? "")));
    section.joined = columns.filter((key) => values[key].length > 1 && new Set(apart(key)).size < section.rows.length);
    const counted = (key) => values[key].every((value) => typeof number(value) === "number");
    // a choice of a group before any other key, then the most values that there are colours for
    const most = (a, b) => a.includes(".") - b.includes(".") || values[b].length - values[a].length;
    const few = columns.filter((key) => values[key].length > 1 && values[key].length <= COLOURS).sort(most);
    const single = columns.length === 1 ? columns[0] : null;
    state = {
      index,
      metric: section.metrics[0],
      sets: new Set(section.sets.slice(0, 8)),
      hidden: Object.fromEntries(columns.map((key) => [key, new Set()])),
      hiddenRows: new Set(),
      colour: single ?? (section.rows.length <= COLOURS ? "" : few[0] ?? ""),
      curve: "evaluation_error",
      cost: [...COSTS].reverse().find((cost) => section.rows.some((row) => isNumber(row.cost[cost.name])))?.name,
      key: section.joined.toSorted((a, b) => counted(b) - counted(a) || values[b].length - values[a].length)[0] ?? null,
      sort: null,
      map: 0,
      query: null,
    };
  };

  const share = () => section.shares.includes(state.metric);
  const write = (value, isShare = share()) =>
    !isNumber(value) ? "unknown" : isShare ? `${(100 * value).toFixed(2)} %` : `${Number(value.toPrecision(4))}`;
  const interval = (d, isShare) =>
    isNumber(d.low) && isNumber(d.high) ? `${write(d.low, isShare).replace(" %", "")} to ${write(d.high, isShare)}` : "interval unknown";
  const colourIndex = (i) => {
    if (state.colour === "") return i;
    return section.values[state.colour].indexOf(section.rows[i].keys[state.colour] ?? "");
  };
  const colour = (i) => `var(--c${colourIndex(i) % COLOURS})`;
  const visible = () =>
    section.rows.map((_, i) => i).filter((i) =>
      !state.hiddenRows.has(i) && section.columns.every((key) => !state.hidden[key].has(section.rows[i].keys[key] ?? "")));
  const sets = () => section.sets.filter((name) => state.sets.has(name));
  const scoreOf = (row, set, metric = state.metric) =>
    section.scoreIndex.get(`${row} ${set}/${metric}`);

  // the best rows where there are more than a figure holds: by the mean over the sets that are shown
  const bestOf = (rows, most) => {
    if (rows.length <= most) return rows;
    const sign = section.rising.includes(state.metric) ? -1 : 1;
    const mean = (i) => {
      const found = sets().map((set) => scoreOf(i, set)?.mean).filter(isNumber);
      return found.length ? (sign * found.reduce((a, b) => a + b)) / found.length : Infinity;
    };
    const keyed = new Map(rows.map((i) => [i, mean(i)]));
    const chosen = new Set([...rows].sort((a, b) => keyed.get(a) - keyed.get(b)).slice(0, most));
    return rows.filter((i) => chosen.has(i));
  };

  // ---- figures -------------------------------------------------------------------------------------------------
  const views = new Map();
  const logOf = { log() { return this; }, level() { return this; }, error: console.error, warn() { return this; }, info() { return this; }, debug() { return this; } };
  const fill = (view, datasets, signals) => {
    for (const [name, values] of Object.entries(datasets)) view.data(name, values);
    for (const [name, value] of Object.entries(signals)) view.signal(name, value);
    return view.resize().runAsync();
  };
  const panel = async (key, kind, place, datasets, signals) => {
    const known = views.get(key);
    if (known && known.place === place) return fill(known.view, datasets, signals);
    // the data are there before anything is drawn: a chart without any has no axes to keep
    const spec = structuredClone(data.units[kind]);
    for (const part of spec.data) if (part.name in datasets) part.values = datasets[part.name];
    for (const part of spec.signals) if (part.name in signals) part.value = signals[part.name];
    const { view } = await vegaEmbed(place, spec, { mode: "vega", actions: false, renderer: "svg", logLevel: 1, logger: logOf });
    views.set(key, { view, place });
    return view;
  };
  const named = (d, text) => ({ ...d, label: section.rows[d.row].label, colour: colour(d.row), tip: `${section.rows[d.row].label}: ${text}` });
  const summary = (d) => named(d, `${write(d.mean)} (${interval(d)})` + (d.n ? `, ${plural(d.n, "seed")}` : ""));
  const within = (frame, rows) => {
    const chosen = new Set(rows);
    return frame.filter((d) => chosen.has(d.row));
  };

  // a group of few outcomes has an interval that would flatten all else: the axis ends above the means
  const top = (lines) => {
    const means = Math.max(...lines.map((d) => d.mean)), highs = Math.max(...lines.map((d) => (isNumber(d.high) ? d.high : d.mean)));
    return means > 0 ? Math.min(highs, 1.3 * means) : highs > 0 ? highs : 1;
  };

  // each figure says its panels: a caption, and data by name
  const FIGURES = {
    scores: {
      title: "Scores", most: MOST_BARS, wide: () => section.rows.some((row) => row.label.length > 18),
      say: "Points are seeds, the tick is their mean, the bar its 95 % interval; the dashed line is what guessing scores, a cross what the paper reports.",
      panels: (rows) => sets().map((set) => {
        const of = (frame) => within(frame, rows).filter((d) => d.set === set && d.metric === state.metric);
        const chance = section.chance[state.metric];
        // far to the right of all scores, it would only press them together
        const near = of(section.seeds).some((d) => d.value > chance / 2);
        return { caption: set, data: {
          summary: of(section.scores).filter((d) => isNumber(d.mean)).map(summary),
          seeds: of(section.seeds).map((d) => named(d, `seed ${d.seed}, ${write(d.value)}`)),
          paper: section.paper.filter((d) => rows.includes(d.row) && d.set === set && d.metric === state.metric).map((d) => named(d, `${write(d.value)} in the paper`)),
          chance: isNumber(chance) && near ? [{ value: chance }] : [],
        } };
      }),
      filled: (panel) => panel.data.summary.length,
    },
    lengths: {
      title: "Against length", most: MOST_LINES,
      say: "The same distribution at other lengths; bars are 95 % intervals.",
      panels: (rows) => {
        const found = within(section.lengths, rows).filter((d) => d.metric === state.metric && isNumber(d.mean));
        return [...new Set(found.map((d) => d.base))].map((base) => {
          const part = found.filter((d) => d.base === base);
          return { caption: base, data: { lines: part.map(summary) }, signals: { ticks: [...new Set(part.map((d) => d.tokens))] } };
        });
      },
    },
    groups: {
      title: () => `By ${[...new Set(section.groups.map((d) => words(d.axis)))].join(", ")}`, most: MOST_LINES,
      say: () => `Outcomes split by a fact of each, counted in groups (${[...new Set(section.groups.map((d) => words(d.axis)))].map((axis) => data.axes[axis] ?? axis).join("; ")}); bars are 95 % intervals.`,
      panels: (rows) => sets().flatMap((set) => [...new Set(section.groups.map((d) => d.axis))].map((axis) => {
        const part = within(section.groups, rows).filter((d) => d.set === set && d.metric === state.metric && d.axis === axis && isNumber(d.mean));
        return { caption: `${set}, by ${words(axis)}`, data: { lines: part.map(summary) } };
      })),
    },
    keys: {
      title: "Against a key", most: 5 * MOST_BARS,
      say: "Configurations that differ in this key alone are joined.",
      controls: () => {
        const keys = section.joined;
        return state.key === null ? [] : [pick("key", keys, state.key, (value) => { state.key = value; })];
      },
      panels: (rows) => state.key === null ? [] : sets().map((set) => {
        const places = section.values[state.key];
        const rest = (row) => section.columns.filter((key) => key !== state.key).map((key) => row.keys[key] ?? "").filter(Boolean).join(" ");
        const lines = rows.map((i) => ({ i, d: scoreOf(i, set) })).filter(({ d }) => d && isNumber(d.mean)).map(({ i, d }) => {
          const value = section.rows[i].keys[state.key] ?? "";
          return { ...summary(d), value, place: places.indexOf(value), label: rest(section.rows[i]) };
        });
        return { caption: set, data: { lines } };
      }),
    },
    curves: {
      title: "Learning curves", most: MOST_LINES, wide: true,
      say: "The mean over seeds, thinned; the band reaches from the lowest to the highest seed.",
      panels: (rows) => ["evaluation_error", "loss"].map((quantity) => {
        const isShare = quantity !== "loss";
        const part = within(section.curves, rows).filter((d) => d.quantity === quantity);
        return { caption: quantity === "loss" ? "training loss" : "error while training", signals: { share: isShare },
          data: { lines: part.map((d) => named(d, `${write(d.mean, isShare)} at step ${d.step}`)) } };
      }),
    },
    costs: {
      title: "Cost and score", most: MOST_BARS, wide: true,
      say: "Lower and further left is better where the score is an error.",
      controls: () => [pick("cost", COSTS.map((cost) => cost.name), state.cost, (value) => { state.cost = value; },
        (name) => COSTS.find((cost) => cost.name === name).title)],
      panels: (rows) => sets().slice(0, 2).map((set) => {
        const unit = COSTS.find((cost) => cost.name === state.cost);
        const points = rows.map((i) => ({ i, d: scoreOf(i, set), cost: section.rows[i].cost[state.cost] }))
          .filter(({ d, cost }) => d && isNumber(d.mean) && isNumber(cost) && cost > 0)
          .map(({ d, cost }) => ({ ...summary(d), cost: cost / unit.size }));
        // more names than that would lie on each other
        for (const point of points) point.text = points.length > 8 ? "" : point.label;
        return { caption: `${set} against ${unit?.title ?? "cost"}${unit?.unit ? `, ${unit.unit}` : ""}`, data: { points } };
      }),
      filled: (panel) => panel.data.points.length,
    },
    maps: {
      title: "Maps", most: MOST_BARS, column: true,
      say: "What each layer and head looks at in one example, and, where the encoding counts, its gates and the positions it counts; the stronger the colour, the more.",
      controls: () => {
        const shown = mapShown();
        if (!shown) return [];
        const { maps, query, all } = shown;
        return [
          pick("run", all.map((_, i) => String(i)), String(all.indexOf(maps)), (value) => { state.map = section.maps.indexOf(all[Number(value)]); state.query = null; },
            (i) => `${section.rows[all[i].row].label}, seed ${all[i].seed}, ${all[i].set} ${all[i].example}`),
          pick("query", maps.queries.map((_, i) => String(i)), String(query), (value) => { state.query = Number(value); },
            (i) => `${maps.tokens[maps.queries[i]]} at ${maps.queries[i]}`),
        ];
      },
      panels: () => {
        const shown = mapShown();
        if (!shown) return [];
        const { maps, query } = shown;
        const kinds = [...new Set(maps.layers.flat().flatMap((head) => Object.keys(head)))];
        return kinds.map((kind) => ({
          caption: kind,
          data: { cells: maps.layers.flatMap((heads, layer) => heads.flatMap((head, h) => (head[kind]?.[query] ?? []).map((number, place) => ({
            key: `${place} ${maps.tokens[place]}`, place, number, head: `layer ${layer + 1} head ${h + 1}`, order: layer * 1000 + h, colour: colour(maps.row),
            tip: `layer ${layer + 1}, head ${h + 1}, ${maps.tokens[place]} at ${place}: ${number}`,
          })))) },
        }));
      },
      filled: (panel) => panel.data.cells.length,
    },
  };

  // the maps that the filters leave, that which is chosen, and the query it shows: the last, unless chosen
  const mapShown = () => {
    const rows = new Set(visible()), all = section.maps.filter((maps) => rows.has(maps.row) && maps.queries.length);
    if (!all.length) return null;
    const maps = all.includes(section.maps[state.map]) ? section.maps[state.map] : all[0];
    const query = state.query !== null && state.query < maps.queries.length ? state.query : maps.queries.length - 1;
    return { maps, query, all };
  };
  const pick = (name, options, chosen, change, title = (x) => x) =>
    el("label", {}, el("span", { class: "name soft" }, `${name} `),
      el("select", { name, onchange: (event) => { change(event.target.value); draw(); } },
        options.map((value) => el("option", { value, ...(value === chosen ? { selected: "" } : {}) }, title(value)))));

  const swatch = (css) => el("span", { class: "swatch", style: `background:${css}` });
  const legend = (rows) => {
    const seen = new Map();
    for (const i of rows) {
      const name = state.colour === "" ? section.rows[i].label : section.rows[i].keys[state.colour] || WITHOUT;
      if (!seen.has(name)) seen.set(name, colour(i));
    }
    return el("div", { class: "legend" }, [...seen].slice(0, 2 * COLOURS).map(([name, css]) => el("span", {}, swatch(css), name)));
  };

  const skeleton = {};
  const prepare = () => {
    const main = document.getElementById("main");
    main.replaceChildren();
    for (const { view } of views.values()) view.finalize();
    views.clear();
    section.scoreIndex ??= new Map(section.scores.map((d) => [`${d.row} ${d.set}/${d.metric}`, d]));
    skeleton.top = el("div", { id: "top" });
    skeleton.table = el("section", { id: "summary" });
    main.append(skeleton.top, skeleton.table);
    skeleton.figures = {};
    for (const name of Object.keys(FIGURES)) {
      skeleton.figures[name] = el("section", { id: name, class: "figure" });
      main.append(skeleton.figures[name]);
    }
    skeleton.configs = el("section", { id: "configs" });
    skeleton.runs = el("section", { id: "runs" });
    main.append(skeleton.configs, skeleton.runs);
    drawRuns();
  };

  const drawFigure = async (name, rows) => {
    const figure = FIGURES[name], place = skeleton.figures[name];
    const say = (text) => (typeof text === "function" ? text() : text);
    const shown = bestOf(rows, figure.most);
    const filled = figure.filled ?? ((panel) => panel.data.lines.length);
    const panels = figure.panels(shown).filter(filled);
    place.hidden = panels.length === 0;
    if (place.hidden) { place.replaceChildren(); return; }
    const left = rows.length - shown.length;
    const note = left > 0 ? ` The best ${shown.length} of ${rows.length} configurations; filter for others.` : "";
    let grid = place.querySelector(".panels");
    const known = new Map([...(grid?.children ?? [])].map((child) => [child.dataset.caption, child]));
    grid ??= el("div");
    // two beside each other where three would leave one alone
    grid.className = figure.column ? "panels column" : `panels${say(figure.wide) || panels.length === 2 || panels.length === 4 ? " wide" : ""}`;
    const nodes = panels.map((panel) => {
      const node = known.get(panel.caption) ?? el("figure", { "data-caption": panel.caption }, el("figcaption", {}, panel.caption), el("div", { class: "chart" }));
      return node;
    });
    grid.replaceChildren(...nodes);
    const controls = figure.controls?.() ?? [];
    place.replaceChildren(el("h2", {}, say(figure.title)), el("p", { class: "say" }, say(figure.say) + note),
      controls.length ? el("div", { class: "controls" }, controls) : "", name === "scores" || name === "maps" ? "" : legend(shown), grid);
    for (const [i, each] of panels.entries())
      await panel(`${name} ${each.caption}`, name, nodes[i].querySelector(".chart"), each.data, { share: share(), ...(each.data.lines ? { top: top(each.data.lines) } : {}), ...each.signals });
  };

  // ---- filters -------------------------------------------------------------------------------------------------
  const toggle = (set, value) => (set.has(value) ? set.delete(value) : set.add(value));
  const chip = (name, pressed, click, css, facts = {}) =>
    el("button", { type: "button", "aria-pressed": pressed, onclick: click, ...facts }, css ? swatch(css) : null, name);
  const drawFilters = () => {
    const groups = [];
    if (data.sections.length > 1)
      groups.push(el("div", { class: "group" }, pick("experiment", data.sections.map((_, i) => String(i)), String(state.index),
        (value) => { choose(Number(value)); prepare(); }, (i) => data.sections[i].title)));
    if (section.metrics.length > 1)
      groups.push(el("div", { class: "group" }, pick("metric", section.metrics, state.metric, (value) => { state.metric = value; }, words)));
    if (section.sets.length > 1)
      groups.push(el("div", { class: "group", "data-filter": "set" }, el("span", { class: "name" }, "evaluation set"), section.sets.map((name) =>
        chip(name, state.sets.has(name), () => { toggle(state.sets, name); draw(); }))));
    for (const key of section.columns) {
      if (section.values[key].length < 2) continue;
      groups.push(el("div", { class: `group${section.values[key].length > 12 ? " many" : ""}`, "data-filter": key }, el("span", { class: "name" }, key), section.values[key].map((value) => {
        const css = state.colour === key ? `var(--c${section.values[key].indexOf(value) % COLOURS})` : null;
        return chip(value || WITHOUT, !state.hidden[key].has(value), () => { toggle(state.hidden[key], value); draw(); }, css);
      })));
    }
    if (state.colour === "" && section.rows.length <= COLOURS && section.rows.length > 1)
      groups.push(el("div", { class: "group", "data-filter": "configuration" }, el("span", { class: "name" }, "configuration"), section.rows.map((row, i) =>
        chip(row.label, !state.hiddenRows.has(i), () => { toggle(state.hiddenRows, i); draw(); }, colour(i)))));
    const colours = ["", ...section.columns.filter((key) => section.values[key].length > 1)];
    if (section.columns.length > 1)
      groups.push(el("div", { class: "group" }, pick("colour", colours, state.colour, (value) => { state.colour = value; }, (key) => key || "configuration")));
    const nav = document.getElementById("filters");
    const open = nav.querySelector("details")?.open ?? window.innerWidth > 700;
    const scrolled = nav.querySelector(".groups")?.scrollTop ?? 0;
    const focused = [...nav.querySelectorAll("button, select")].indexOf(document.activeElement);
    nav.replaceChildren(el("details", open ? { open: "" } : {}, el("summary", {}, `Filters: ${visible().length} of ${plural(section.rows.length, "configuration")}, ${words(state.metric)}`), el("div", { class: "groups" }, groups)));
    nav.querySelector(".groups").scrollTop = scrolled;
    if (focused >= 0) nav.querySelectorAll("button, select")[focused]?.focus({ preventScroll: true });
  };

  // ---- what stands on top --------------------------------------------------------------------------------------
  const drawTop = (rows) => {
    const parts = [];
    if (section.study) parts.push(...studyParts(section.study));
    const rising = section.rising.includes(state.metric);
    const cards = sets().slice(0, 6).map((set) => {
      const found = rows.map((i) => scoreOf(i, set)).filter((d) => d && isNumber(d.mean)).sort((a, b) => (rising ? b.mean - a.mean : a.mean - b.mean));
      if (found.length < 2) return null;
      // those that score exactly the same stand there together
      const tied = found.filter((d) => d.mean === found[0].mean);
      const best = tied[0], next = found[tied.length];
      const apart = (d) => isNumber(d.low) && isNumber(best.low) && (d.low > best.high || best.low > d.high);
      const near = found.slice(tied.length).filter((d) => !apart(d));
      const label = (d) => section.rows[d.row].label;
      const names = (some) => some.slice(0, 4).map(label).join(", ") + (some.length > 4 ? `, ${some.length - 4} more` : "");
      const text = near.length ? `not told apart from ${names(near)}` : next ? `next ${label(next)}, ${write(next.mean)}` : "all score the same";
      return el("div", { class: "card" }, el("div", { class: "soft" }, `${rising ? "highest" : "lowest"} ${words(state.metric)}, ${set}`),
        el("div", { class: "big" }, tied.length === 1 ? swatch(colour(best.row)) : null, names(tied)), el("div", {}, `${write(best.mean)} `, el("span", { class: "soft" }, `(${interval(best)})`)), el("div", { class: "soft" }, text));
    }).filter(Boolean);
    if (cards.length) parts.push(el("div", { class: "cards" }, cards));
    skeleton.top.replaceChildren(...parts);
  };
  const studyParts = (study) => {
    const kind = { "holds": "holds", "does not hold": "not" }[study.verdict] ?? "partly";
    const rows = study.judged.map((each) => el("tr", {}, el("td", { class: "left" }, each.says), el("td", { class: "left" }, each.numbers),
      el("td", { class: `left ${{ holds: "holds", contrary: "contrary" }[each.verdict] ?? "open"}` }, each.verdict)));
    return [el("div", { class: `study ${kind}` }, el("p", {}, study.claim), el("p", { class: "verdict" }, `${study.verdict[0].toUpperCase()}${study.verdict.slice(1)}`), el("p", {}, study.because),
      el("details", {}, el("summary", { class: "soft" }, `what decides, ${study.source}`), el("div", { class: "table" }, el("table", {}, rows))))];
  };

  // ---- tables --------------------------------------------------------------------------------------------------
  const drawTable = (rows) => {
    const shown = sets().filter((set) => rows.some((i) => scoreOf(i, set)));
    const costs = COSTS.filter((cost) => rows.some((i) => isNumber(section.rows[i].cost[cost.name])));
    const keyed = (window.innerWidth < 700 ? [] : section.columns).map((key) => ({ title: key, left: true, text: (i) => section.rows[i].keys[key] ?? "" }));
    if (!keyed.length) keyed.push({ title: "configuration", left: true, text: (i) => section.rows[i].label });
    const columns = [
      ...keyed.map((column, place) => ({ ...column, value: (i) => number(column.text(i)),
        cell: (i) => [place === 0 ? swatch(colour(i)) : null, el("span", { title: column.text(i) }, column.text(i))] })),
      { title: "seeds", value: (i) => section.rows[i].n, cell: (i) => [String(section.rows[i].n), section.rows[i].incomplete ? el("span", { class: "low" }, section.rows[i].incomplete) : null] },
      ...shown.map((set) => ({ title: `${set}\n${words(state.metric)}`, value: (i) => scoreOf(i, set)?.mean, best: (i) => scoreOf(i, set)?.mark === "*",
        cell: (i) => scoreCell(scoreOf(i, set), section.paper.find((d) => d.row === i && d.set === set && d.metric === state.metric)) })),
      ...costs.map((cost) => ({ title: cost.title, value: (i) => section.rows[i].cost[cost.name], cell: (i) => [section.rows[i].written[cost.name] ?? ""] })),
    ];
    const order = [...rows];
    if (state.sort && state.sort.column < columns.length) {
      const { column, down } = state.sort, key = columns[column].value;
      const absent = (v) => v === undefined || v === null || v === "" || (typeof v === "number" && Number.isNaN(v));
      order.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (absent(x) || absent(y)) return absent(x) - absent(y);
        const less = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return down ? -less : less;
      });
    }
    const head = columns.map((column, place) => {
      const sorted = state.sort?.column === place;
      const click = () => { state.sort = { column: place, down: sorted && !state.sort.down }; drawTable(visible()); };
      return el("th", { class: column.left ? "left" : null, tabindex: 0, "aria-sort": sorted ? (state.sort.down ? "descending" : "ascending") : null, onclick: click,
        onkeydown: (event) => { if (event.key === "Enter") click(); } }, column.title);
    });
    const body = order.slice(0, 500).map((i) => el("tr", {}, columns.map((column) => el("td", { class: column.left ? "left" : column.best?.(i) ? "best" : null }, column.cell(i)))));
    skeleton.table.replaceChildren(el("h2", {}, "Summary"),
      el("p", { class: "say" }, `Means over seeds with 95 % intervals (Student's t; with one seed, or where all seeds score the same, the run's own). Solved: an error of at most ${100 * data.solved} %. * best, and its interval overlaps no other's; ~ not told apart from the best. A click on a column sorts.`),
      el("div", { class: `table${body.length > 25 ? " long" : ""}`, tabindex: body.length > 25 ? 0 : null }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body))),
      section.notes.length ? el("ul", { class: "notes" }, section.notes.map((note) => el("li", {}, note))) : "");
  };
  const scoreCell = (d, paper) => {
    if (!d) return [""];
    const reported = paper ? `${write(paper.value)} in the paper` : null;
    const solved = isNumber(d.solved) ? `${d.solved}/${d.n} solved` : null;
    const difference = isNumber(d.difference) ? `${d.difference > 0 ? "+" : ""}${write(d.difference)} ${d.verdict}` : null;
    return [`${write(d.mean)} ${d.mark ?? ""}`.trim(), ...[interval(d), solved, difference, reported].filter(Boolean).map((text) => el("span", { class: "low" }, text))];
  };
  const drawConfigs = (rows) => {
    const shown = bestOf(rows, 24);
    const differ = section.differences.filter((key) => new Set(shown.map((i) => key.values[i])).size > 1);
    skeleton.configs.hidden = differ.length === 0;
    const note = shown.length < rows.length ? ` The best ${shown.length} of ${rows.length}; filter for others.` : "";
    skeleton.configs.replaceChildren(el("h2", {}, "Configurations side by side"), el("p", { class: "say" }, `What differs, and nothing else.${note}`),
      el("div", { class: "table" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", { class: "left" }, "key"), shown.map((i) => el("th", { class: "left" }, section.rows[i].label)))),
        el("tbody", {}, differ.map((key) => el("tr", {}, el("td", { class: "left" }, el("code", {}, key.key)), shown.map((i) => el("td", { class: "left" }, key.values[i]))))))));
  };
  const drawRuns = () => {
    const failed = section.runs.filter((run) => run.status !== "completed");
    const list = (runs) => el("div", { class: "table" }, el("table", {}, runs.map((run) => el("tr", {}, el("td", { class: "left" }, run.label), el("td", {}, `seed ${run.seed}`), el("td", { class: "left" }, run.status), el("td", { class: "left" }, el("code", {}, run.folder)), el("td", { class: "left" }, run.error ?? "")))));
    const all = el("details", { class: "runs" }, el("summary", {}, `All ${plural(section.runs.length, "run")}`));
    all.addEventListener("toggle", () => { if (all.open && all.children.length === 1) all.append(list(section.runs)); });
    const parts = [el("h2", {}, "Runs")];
    if (failed.length) parts.push(el("p", { class: "say" }, "Not completed, and in no average:"), list(failed));
    if (data.unreadable.length) parts.push(el("p", { class: "say" }, "Skipped, as they cannot be read:"), el("ul", { class: "notes" }, data.unreadable.map((run) => el("li", {}, `${run.folder}: ${run.reason}`))));
    skeleton.runs.replaceChildren(...parts, all);
  };

  // ---- everything ----------------------------------------------------------------------------------------------
  let drawing = Promise.resolve();
  const draw = () => {
    drawFilters();
    const rows = visible();
    drawTop(rows);
    drawTable(rows);
    drawConfigs(rows);
    document.documentElement.removeAttribute("data-ready");
    const latest = (drawing = drawing.then(async () => {
      for (const name of Object.keys(FIGURES)) if (latest === drawing) await drawFigure(name, rows);
      if (latest === drawing) document.documentElement.setAttribute("data-ready", "");
    }));
  };
  document.getElementById("about").textContent = data.about;
  choose(0);
  prepare();
  draw();
})();
