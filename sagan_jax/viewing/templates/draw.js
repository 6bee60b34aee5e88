// Draws samples, and shows what a pixel attends to when it is clicked.
const form = document.querySelector('form');
const status = document.querySelector('[role=status]');
const samples = document.querySelector('.samples');
const maps = document.querySelector('.maps');
const PIXELS = 320; // of a map's canvas

// Colours of weights, from none to the greatest.
const STOPS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

let latest = 0; // request; answers to earlier ones come too late
let drawn = {}; // what the samples on the page were drawn with

async function ask(path, values) {
  const number = ++latest;
  status.textContent = 'Drawing …';
  try {
    const response = await fetch(`${path}?${new URLSearchParams(values)}`).catch(() => {
      throw new Error('The server does not answer.');
    });
    if (!response.ok) throw new Error(await response.text());
    const found = await response.json();
    if (number !== latest) return null;
    status.textContent = `Step ${found.step.toLocaleString('en')}. Click on a pixel.`;
    return found;
  } catch (error) {
    if (number === latest) status.textContent = error.message;
    return null;
  }
}

async function draw(event) {
  event?.preventDefault();
  const values = Object.fromEntries(new FormData(form));
  const found = await ask('samples', values);
  if (!found) return;
  const { n, ...shared } = values;
  drawn = { ...shared, step: found.step, model: found.model };
  maps.hidden = true;
  samples.replaceChildren(...found.images.map(({ source, class: name }, number) => {
    const button = document.createElement('button');
    const image = button.appendChild(new Image());
    image.src = source;
    image.alt = name ? `${number} (${name})` : `${number}`;
    button.title = name;
    button.addEventListener('click', (click) => look(image, number, placeOf(click, image)));
    return button;
  }));
}

// The pixel under a click, row and column; the middle one if a key was pressed.
function placeOf(click, shown) {
  const size = samples.querySelector('img').naturalWidth;
  if (!click.detail) return [size >> 1, size >> 1];
  const box = shown.getBoundingClientRect();
  const part = [(click.clientY - box.top) / box.height, (click.clientX - box.left) / box.width];
  return part.map((share) => Math.min(Math.max(Math.floor(share * size), 0), size - 1));
}

async function look(image, number, [row, column]) {
  const found = await ask('attention', { ...drawn, number, row, column });
  if (!found) return;
  if (!found.maps.length) {
    status.textContent = 'This generator has no attention.';
    return;
  }
  samples.querySelector('.chosen')?.classList.remove('chosen');
  image.parentElement.classList.add('chosen');
  const heading = document.createElement('h2');
  heading.textContent = `What row ${row}, column ${column} of image ${image.alt} attends to`;
  const figures = found.maps.map(({ resolution, weights }) => {
    const figure = document.createElement('figure');
    const canvas = figure.appendChild(document.createElement('canvas'));
    canvas.width = canvas.height = PIXELS;
    paint(canvas, image, weights, row, column);
    canvas.addEventListener('click', (click) => look(image, number, placeOf(click, canvas)));
    const caption = figure.appendChild(document.createElement('figcaption'));
    const most = (100 * Math.max(...weights.flat())).toPrecision(3);
    caption.textContent = `attention at ${resolution}×${resolution} over ${weights.length}×`
      + `${weights.length} keys; the largest weight is ${most} %`;
    return figure;
  });
  maps.replaceChildren(heading, ...figures);
  maps.hidden = false;
  maps.scrollIntoView({ block: 'nearest', behavior: 'smooth' });
}

// The image with its map on it and a ring around the pixel.
function paint(canvas, image, weights, row, column) {
  const pen = canvas.getContext('2d');
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, PIXELS, PIXELS);
  const most = Math.max(...weights.flat());
  const cell = PIXELS / weights.length;
  pen.globalAlpha = 0.7;
  weights.forEach((line, i) => line.forEach((weight, j) => {
    pen.fillStyle = colour(weight / most);
    const [x, y] = [Math.round(j * cell), Math.round(i * cell)];
    pen.fillRect(x, y, Math.round((j + 1) * cell) - x, Math.round((i + 1) * cell) - y);
  }));
  pen.globalAlpha = 1;
  const [x, y] = [column, row].map((at) => ((at + 0.5) * PIXELS) / image.naturalWidth);
  for (const [radius, ink] of [[8, '#000'], [6, '#fff']]) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.stroke();
  }
}

function colour(share) {
  const at = share * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  const mixed = STOPS[low].map((from, i) => from + (STOPS[low + 1][i] - from) * (at - low));
  return `rgb(${mixed.map(Math.round).join(' ')})`;
}

form.addEventListener('submit', draw);
draw();
