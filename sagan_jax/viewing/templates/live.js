// Follows a running job. What the reader has opened or moved stays as it is.
let version = null;

async function follow() {
  if (document.hidden) return;
  const response = await fetch(location.pathname, { cache: 'no-cache' }).catch(() => null);
  if (!response?.ok || response.headers.get('etag') === version) return;
  version = response.headers.get('etag');
  const before = document.querySelector('main');
  const now = new DOMParser().parseFromString(await response.text(), 'text/html').querySelector('main');
  const opened = [...before.querySelectorAll('details')].map((details) => details.open);
  now.querySelectorAll('details').forEach((details, at) => { details.open = opened[at]; });
  const slider = before.querySelector('.slider');
  const shown = before.querySelector('output')?.textContent;
  before.replaceWith(document.adoptNode(now));
  const after = now.querySelector('.slider');
  if (!after || !slider || slider.value === slider.max) return;
  const images = [...after.closest('figure').querySelectorAll('img')];
  const at = images.findIndex((image) => image.alt === shown);
  if (at < 0) return;
  after.value = at;
  after.dispatchEvent(new Event('input', { bubbles: true }));
}

setInterval(follow, 10000);
