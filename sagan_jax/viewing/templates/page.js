'use strict';

// A slider shows one of the images of its figure; without this script the last one shows.
document.addEventListener('input', ({ target }) => {
  if (!target.matches('.slider')) return;
  const figure = target.closest('figure');
  figure.querySelectorAll('img').forEach((image, at) => {
    image.hidden = at !== target.valueAsNumber;
    if (!image.hidden) figure.querySelector('output').textContent = image.alt;
  });
});

// The values of a chart's curves at the step that is nearest to the pointer.
const tip = document.body.appendChild(document.createElement('div'));
tip.className = 'tip';
tip.hidden = true;
let pointed = null;

function point(event) {
  const chart = event.target.closest?.('svg[role="img"]');
  if (pointed && pointed !== chart) pointed.querySelector('.pointer').removeAttribute('x1');
  pointed = chart;
  tip.hidden = !chart;
  if (!chart) return;
  const box = chart.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
  const curves = [...chart.querySelectorAll('g')].map((group) => {
    const line = group.querySelector('polyline:last-of-type');
    const values = group.dataset.values.split(' ').map((pair) => pair.split(':'));
    const xs = [...line.points].map((place) => place.x);
    return { name: group.querySelector('title').textContent, line, values, xs };
  });
  let nearest = { far: Infinity };
  for (const { values, xs } of curves) {
    xs.forEach((at, index) => {
      const far = Math.abs(at - x);
      if (far < nearest.far) nearest = { far, at, step: values[index][0] };
    });
  }
  tip.hidden = nearest.far === Infinity; // no step that all runs of a curve share
  if (tip.hidden) return;
  const pointer = chart.querySelector('.pointer');
  pointer.setAttribute('x1', nearest.at);
  pointer.setAttribute('x2', nearest.at);
  const lines = [document.createElement('p')];
  lines[0].textContent = `step ${Number(nearest.step).toLocaleString('en')}`;
  for (const { name, line, values } of curves) {
    const found = values.find(([step]) => step === nearest.step);
    if (!found) continue;
    const entry = document.createElement('p');
    const dot = entry.appendChild(document.createElement('i'));
    dot.style.background = line.getAttribute('stroke');
    entry.append(`${name} ${found[1]}`);
    lines.push(entry);
  }
  tip.replaceChildren(...lines);
  const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4);
  const top = Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 4);
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${Math.max(top, 4)}px`;
}

document.addEventListener('pointermove', point);
document.addEventListener('pointerdown', point);
