'use strict';
const data = JSON.parse(document.getElementById('data').textContent), at = id => document.getElementById(id);
const canvas = at('map'), pen = canvas.getContext('2d'), n = data.x.length;
const palette = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c6d31', '#7f3fbf', '#b8b800', '#e31a1c', '#17becf', '#636363'];
const names = ['label', 'patient', 'device', 'place'].filter(name => name in data.columns);
const view = {zoom: 1, x: 0.5, y: 0.5};
let by = '', off = new Set(), chosen = -1, hovered = -1, drag = null, size = 0, colours = [], groups = [];

function regroup(name) {
  by = name; off = new Set();
  const values = data.columns[name];
  groups = []; colours = [];
  if (!values) { colours = (data.probabilities[name.slice(2)] || []).map(p => `hsl(${215 + 160 * p} ${60 + 30 * p}% ${62 - 10 * p}%)`); return legend(); }
  const count = Object.create(null);
  for (const value of values) count[value] = (count[value] || 0) + 1;
  const order = Object.keys(count).sort((a, b) => (a === 'unknown') - (b === 'unknown') || count[b] - count[a] || (a < b ? -1 : 1));
  const colour = Object.create(null);
  order.forEach((value, k) => { colour[value] = value === 'unknown' ? '#9aa5b0' : k < palette.length ? palette[k] : `hsl(${(k * 137.5) % 360} 55% 52%)`; });
  colours = values.map(value => colour[value]);
  groups = order.map(value => [value, count[value], colour[value]]);
  legend();
}

function legend() {
  const box = at('legend');
  box.replaceChildren();
  for (const button of at('colours').querySelectorAll('button')) button.setAttribute('aria-pressed', button.dataset.by === by);
  if (!groups.length) { const ramp = document.createElement('span'); ramp.className = 'ramp'; box.append('0', ramp, '1'); return draw(); }
  for (const [value, count, colour] of groups.slice(0, 14)) {
    const button = document.createElement('button'), dot = document.createElement('i');
    button.type = 'button'; dot.style.background = colour; button.append(dot, `${value} ${count}`);
    button.title = 'click: hide or show; double click: only this';
    button.onclick = () => { off.has(value) ? off.delete(value) : off.add(value); mark(); };
    button.ondblclick = () => { off = new Set(groups.map(group => group[0]).filter(other => other !== value)); mark(); };
    button.dataset.value = value; box.append(button);
  }
  if (groups.length > 14) box.append(`and ${groups.length - 14} more`);
  mark();
}

function mark() {
  for (const button of at('legend').querySelectorAll('button')) { const hidden = off.has(button.dataset.value); button.classList.toggle('off', hidden); button.setAttribute('aria-pressed', false); button.setAttribute('aria-label', `${button.textContent}, ${hidden ? 'hidden' : 'shown'}`); }
  draw();
}

const shown = k => !off.size || !off.has((data.columns[by] || [])[k]);
const place = k => [((data.x[k] - view.x) * view.zoom * 0.94 + 0.5) * size, ((view.y - data.y[k]) * view.zoom * 0.94 + 0.5) * canvas.clientHeight];

function draw() {
  const scale = window.devicePixelRatio || 1, box = canvas.parentElement;
  size = box.clientWidth;
  const height = Math.round(Math.min(size, Math.max(340, window.innerHeight * 0.72)));
  canvas.style.height = height + 'px';
  canvas.width = size * scale; canvas.height = height * scale;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  const radius = Math.min(7, Math.max(2.2, size / 260) * Math.sqrt(view.zoom));
  pen.globalAlpha = 0.8;
  for (let k = 0; k < n; k++) if (shown(k)) { const [x, y] = place(k); pen.fillStyle = colours[k]; pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fill(); }
  pen.globalAlpha = 1; pen.strokeStyle = getComputedStyle(document.body).color;
  for (const k of [hovered, chosen]) if (k >= 0) { const [x, y] = place(k); pen.lineWidth = k === chosen ? 3 : 1.5; pen.beginPath(); pen.arc(x, y, radius + 3.5, 0, 7); pen.stroke(); }
}

function nearest(event, reach) {
  const box = canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
  let best = -1, least = reach * reach;
  for (let k = 0; k < n; k++) if (shown(k)) { const [x, y] = place(k), d = (x - px) ** 2 + (y - py) ** 2; if (d < least) { least = d; best = k; } }
  return best;
}

const about = k => [['recording', data.recording[k]], ['time', `${data.span[k][0]} to ${data.span[k][1]} s`],
  ...names.map(name => [name, data.columns[name][k]]),
  ...Object.entries(data.probabilities).map(([name, values]) => [`P(${name})`, values[k].toFixed(2)])];

function hover(k) {
  hovered = k;
  const tip = at('tip');
  tip.hidden = k < 0;
  if (k >= 0) {
    tip.replaceChildren(...about(k).map(([name, value]) => { const line = document.createElement('div'); line.textContent = `${name}: ${value}`; return line; }));
    const [x, y] = place(k);
    tip.style.left = Math.max(4, Math.min(x + 14, size - tip.offsetWidth - 4)) + 'px';
    const below = y < canvas.clientHeight / 2 ? y + 12 : y - tip.offsetHeight - 12;
    tip.style.top = Math.max(4, Math.min(below, canvas.clientHeight - tip.offsetHeight - 4)) + 'px';
  }
  draw();
}

function choose(k) {
  if (k < 0) return;
  chosen = k;
  at('facts').replaceChildren(...about(k).flatMap(([name, value]) => { const term = document.createElement('dt'), text = document.createElement('dd'); term.textContent = name; text.textContent = value; return [term, text]; }));
  const player = at('player'), inside = data.sound[k].startsWith('data:');
  at('said').textContent = inside ? '' : 'From the recording on this machine.';
  player.onerror = () => { at('said').textContent = 'The recording was moved or deleted, or this browser cannot play it.'; };
  player.src = data.sound[k];
  const started = player.play();
  if (started) started.catch(() => {});
  draw();
}

function zoom(factor, px = size / 2, py = canvas.clientHeight / 2) {
  const before = view.zoom;
  view.zoom = Math.min(40, Math.max(1, before * factor));
  const change = (1 / before - 1 / view.zoom) / 0.94;
  view.x += (px / size - 0.5) * change; view.y -= (py / canvas.clientHeight - 0.5) * change;
  if (view.zoom === 1) view.x = view.y = 0.5;
  hover(-1);
}

canvas.onpointermove = event => {
  if (drag && event.buttons) {
    const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
    drag.moved = drag.moved || Math.abs(dx) + Math.abs(dy) > 4;
    if (drag.moved && view.zoom > 1) { view.x = drag.vx - dx / size / view.zoom / 0.94; view.y = drag.vy + dy / canvas.clientHeight / view.zoom / 0.94; return hover(-1); }
  }
  const k = nearest(event, 12);
  if (k !== hovered) hover(k);
};
canvas.onpointerdown = event => { drag = {x: event.clientX, y: event.clientY, vx: view.x, vy: view.y, moved: false}; };
canvas.onclick = event => { if (!drag || !drag.moved || view.zoom === 1) choose(nearest(event, 18)); drag = null; };
canvas.onpointerleave = () => hover(-1);
canvas.addEventListener('wheel', event => { if (!event.ctrlKey) return; event.preventDefault(); const box = canvas.getBoundingClientRect(); zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top); }, {passive: false});
canvas.onkeydown = event => {
  const way = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (event.key === 'Enter' && hovered >= 0) return choose(hovered);
  if (!way) return;
  event.preventDefault();
  const from = hovered >= 0 ? hovered : Math.max(chosen, 0), [fx, fy] = place(from);
  let best = from, least = Infinity;
  for (let k = 0; k < n; k++) if (k !== from && shown(k)) { const [x, y] = place(k), along = (x - fx) * way[0] + (y - fy) * way[1], across = Math.abs((x - fx) * way[1]) + Math.abs((y - fy) * way[0]); if (along > 0.5 && along + 3 * across < least) { least = along + 3 * across; best = k; } }
  hover(best);
};
at('in').onclick = () => zoom(1.6); at('out').onclick = () => zoom(1 / 1.6); at('all').onclick = () => zoom(0);
for (const name of [...names, ...Object.keys(data.probabilities).map(label => `p:${label}`)]) {
  const button = document.createElement('button');
  button.type = 'button'; button.dataset.by = name; button.textContent = name.startsWith('p:') ? `P(${name.slice(2)})` : name;
  button.onclick = () => regroup(name);
  at('colours').append(button);
}
window.addEventListener('resize', draw);
const first = at('colours').querySelector('button');
if (first) regroup(first.dataset.by); else { colours = Array(n).fill(palette[0]); draw(); }
