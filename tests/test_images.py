import ast
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from sagan_jax.errors import UserError
from sagan_jax.images import SUFFIXES, image_grid, read, read_square, save_png, square

ROOT = Path(__file__).parents[1]


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def saved(tmp_path, image, name='image.png', **options):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.webp', 'a.tiff'])
def test_an_image_of_the_right_size_is_read_unchanged(tmp_path, noise, name):
    path = saved(tmp_path, noise, name, **({'lossless': True} if name == 'a.webp' else {}))
    result = read_square(path, 32)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, noise)


@pytest.mark.parametrize('pad', [((5, 5), (0, 0)), ((0, 0), (7, 7)), ((0, 1), (0, 0))])
def test_crops_the_centre(tmp_path, noise, pad):
    padded = np.pad(noise, (*pad, (0, 0)))
    np.testing.assert_array_equal(read_square(saved(tmp_path, padded), 32), noise)


def lanczos(row, start, length, size):
    """Resamples row[start : start + length] along the first axis by the Lanczos-3 kernel.

    Near both ends the kernel reaches rows outside the slice.
    """
    scale = length / size
    stretch = max(scale, 1)  # to the output's pixels, against aliasing
    result = []
    for index in range(size):
        centre = start + (index + 0.5) * scale
        distance = (np.arange(len(row)) + 0.5 - centre) / stretch
        weights = np.sinc(distance) * np.sinc(distance / 3) * (abs(distance) < 3)
        result.append(np.tensordot(weights / weights.sum(), row, 1))
    return np.stack(result)


@pytest.mark.parametrize('size', [12, 20, 33, 50, 200])
def test_resizes_by_lanczos(tmp_path, size):
    image = np.random.default_rng(1).integers(60, 190, (size, size + 9, 3), np.uint8)
    result = read_square(saved(tmp_path, image), 32)
    columns = lanczos(image.astype(float).swapaxes(0, 1), 4, size, 32)
    expected = lanczos(columns.swapaxes(0, 1), 0, size, 32)
    # Pillow rounds to whole numbers between its two passes.
    np.testing.assert_allclose(result, np.clip(expected, 0, 255), atol=1.5)


def test_one_pixel(tmp_path):
    path = saved(tmp_path, np.full((1, 1, 3), (10, 200, 30), np.uint8))
    assert (read_square(path, 32) == (10, 200, 30)).all()


def test_grey(tmp_path, noise):
    result = read_square(saved(tmp_path, noise[..., 0]), 32)
    np.testing.assert_array_equal(result, np.repeat(noise[..., :1], 3, -1))


def test_black_and_white(tmp_path, noise):
    mask = noise[..., 0] > 127
    result = read_square(saved(tmp_path, mask), 32)
    np.testing.assert_array_equal(result, np.repeat(mask[..., None], 3, -1) * 255)


def test_sixteen_bits_are_scaled(tmp_path):
    grey = np.linspace(0, 65535, 32 * 32).round().astype(np.uint16).reshape(32, 32)
    result = read_square(saved(tmp_path, grey), 32)
    expected = np.floor(grey / 257 + 0.5).astype(np.uint8)
    assert (expected.min(), expected.max()) == (0, 255)
    np.testing.assert_array_equal(result, np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize('channels', ['LA', 'RGBA'])
def test_transparency_on_white(tmp_path, noise, channels):
    alpha = np.random.default_rng(2).integers(0, 256, (32, 32, 1), np.uint8)
    colour = noise[..., :1] if channels == 'LA' else noise
    result = read_square(saved(tmp_path, np.concatenate([colour, alpha], -1)), 32)
    share = alpha / 255
    expected = np.broadcast_to(colour * share + 255 * (1 - share), (32, 32, 3))
    np.testing.assert_allclose(result, expected, atol=1.01)


def test_palette_with_transparency(tmp_path):
    indices = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3
    image = Image.fromarray(indices, 'L').convert('P')
    palette = [(250, 10, 20), (30, 40, 200), (0, 0, 0)]
    image.putpalette([value for colour in palette for value in colour])
    result = read_square(saved(tmp_path, image, transparency=2), 32)
    expected = np.array([*palette[:2], (255, 255, 255)], np.uint8)[indices]
    np.testing.assert_array_equal(result, expected)


def test_grey_with_a_transparent_value(tmp_path, noise):
    grey = noise[..., 0]
    result = read_square(saved(tmp_path, grey, transparency=int(grey[3, 4])), 32)
    expected = np.where(grey == grey[3, 4], 255, grey)
    np.testing.assert_array_equal(result, np.repeat(expected[..., None], 3, -1))


def test_cmyk(tmp_path):
    # Whole JPEG blocks of one ink each, so that the compression hardly shows.
    inks = np.array(
        [[(255, 0, 0, 0), (0, 255, 0, 0)], [(0, 0, 255, 128), (40, 80, 120, 60)]], np.uint8
    )
    image = Image.fromarray(inks.repeat(16, 0).repeat(16, 1), 'CMYK')
    path = saved(tmp_path, image, 'a.jpg', quality=100, subsampling=0)
    with Image.open(path) as stored:
        assert stored.mode == 'CMYK'
    result = read_square(path, 32)
    paper = 255 - inks[..., :3].astype(float)
    expected = (paper * (255 - inks[..., 3:].astype(float)) / 255).repeat(16, 0).repeat(16, 1)
    np.testing.assert_allclose(result, expected, atol=4)


@pytest.mark.parametrize(
    ('orientation', 'upright'),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation(tmp_path, noise, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = read_square(saved(tmp_path, noise, exif=exif), 32)
    np.testing.assert_array_equal(result, upright(noise))


def test_first_frame(tmp_path, noise):
    frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    path = saved(
        tmp_path, frames[0], 'a.webp', save_all=True, append_images=frames[1:], lossless=True
    )
    with Image.open(path) as stored:
        assert stored.n_frames == 2
    np.testing.assert_array_equal(read_square(path, 32), noise)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.5, 0.95])
def test_truncated(tmp_path, noise, name, share):
    path = saved(tmp_path, noise, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=f'Cannot read the image .*{name}.* remove it'):
        read_square(path, 32)


# ---- Formats. ------------------------------------------------------------------------------------


WRITTEN = [
    *('.jpg', '.jpeg', '.jfif', '.jpe', '.JPG', '.png', '.apng', '.webp', '.gif', '.bmp'),
    *('.tif', '.tiff', '.ppm', '.pgm', '.pnm', '.tga'),
]


@pytest.mark.parametrize('suffix', WRITTEN)
def test_every_suffix_that_is_listed_is_read(tmp_path, suffix):
    assert suffix.lower() in SUFFIXES
    # GIF has at most 256 colours and PGM is grey.
    image = waves(0).convert('L') if suffix in ('.gif', '.pgm') else waves(0)
    path = saved(tmp_path, image, f'a{suffix}')
    assert abs(read(path).astype(int) - np.asarray(image.convert('RGB'))).mean() < 3


@pytest.mark.skipif(not features.check('avif'), reason='this Pillow cannot decode AVIF')
def test_avif_is_read_where_pillow_decodes_it(tmp_path):
    path = tmp_path / 'a.avif'
    waves(0).save(path, quality=95)
    assert '.avif' in SUFFIXES
    assert abs(read(path).astype(int) - np.asarray(waves(0))).mean() < 3


DOCUMENTS = {
    'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n',
    'eps_with_preview': b'\xc5\xd0\xd3\xc6' + struct.pack('<6I', 32, 90, 0, 0, 0, 0) + b'\xff' * 4
    + b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n',
    'ps': b'%!PS\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n',
    'pdf': b'%PDF-1.4\n1 0 obj << >> endobj\ntrailer << >>\n%%EOF\n',
    'wmf': b'\xd7\xcd\xc6\x9a' + bytes(100),
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32"/>',
}  # fmt: skip


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.tga', '.eps', ''])
@pytest.mark.parametrize('kind', DOCUMENTS)
def test_no_file_starts_another_program(tmp_path, monkeypatch, kind, suffix):
    # Pillow runs the first `gs` on the path.
    program = tmp_path / 'bin' / 'gs'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent), prepend=':')
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    path = tmp_path / f'x{suffix}'
    path.write_bytes(DOCUMENTS[kind])
    with pytest.raises(UserError, match=f'Cannot read the image {path} '):
        read_square(path, 32)
    assert not (tmp_path / 'started').exists()


def test_images_are_opened_in_one_place():
    for path in (ROOT / 'sagan_jax').rglob('*.py'):
        opened = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and ast.unparse(node) == 'Image.open'
        ]
        assert len(opened) == (path == ROOT / 'sagan_jax' / 'images.py'), path


# ---- Two hundred broken files. -----------------------------------------------------------------


def waves(seed):
    """A smooth image, which differs clearly from what a decoder makes of damaged data."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 300, 2)
    y, x = np.mgrid[:height, :width] / 100
    a, b, phase = rng.uniform(1, 5, (3, 3, 1, 1))
    return Image.fromarray(
        (127 + 110 * np.sin(a * x + b * y + phase)).transpose(1, 2, 0).astype(np.uint8)
    )


def encoded(image, file_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def cut(content, share):
    return content[: int(share * len(content))]


def zeroed(content, share):
    return cut(content, share).ljust(len(content), b'\0')


def with_size(png, width, height):
    """The same PNG with another size in its header and a correct checksum."""
    header = b'IHDR' + struct.pack('>II', width, height) + png[24:29]
    return png[:12] + header + struct.pack('>I', zlib.crc32(header)) + png[33:]


def broken_files():
    """Yields (seed of the image, file name, content, whether it can be read)."""
    for seed in range(8):
        image = waves(seed)
        originals = {
            'baseline.jpg': encoded(image, 'JPEG', quality=92),
            'progressive.jpg': encoded(image, 'JPEG', quality=92, progressive=True),
            'whole.png': encoded(image, 'PNG'),
        }
        for name, content in originals.items():
            yield seed, f'padded_{name}', content + bytes(512), True
            for share in (0.0, 0.02, 0.5, 0.9):
                yield seed, f'cut_{share}_{name}', cut(content, share), False
                yield seed, f'zeroed_{share}_{name}', zeroed(content, share), False
        png = originals['whole.png']
        for share in (0.4, 0.7):
            at = int(share * len(png))
            flipped = png[:at] + bytes([png[at] ^ 16]) + png[at + 1 :]
            yield seed, f'flipped_{share}.png', flipped, False
        yield seed, 'huge.png', with_size(png, 60_000, 60_000), False
        yield seed, 'really_a_png.jpg', png, True
        yield seed, 'really_a_jpeg.png', originals['baseline.jpg'], True
        yield seed, 'cmyk.jpg', encoded(image.convert('CMYK'), 'JPEG', quality=92), True
        yield seed, 'palette.png', encoded(image.convert('P', colors=256), 'PNG'), True
        yield seed, 'opaque.png', encoded(image.convert('RGBA'), 'PNG'), True
        animation = {'save_all': True, 'append_images': [image.transpose(0), image.transpose(1)]}
        yield seed, 'animated.png', encoded(image, 'PNG', **animation), True
        yield seed, 'animated.webp', encoded(image, 'WEBP', quality=92, **animation), True


def test_broken_files_are_read_correctly_or_named_in_the_error(tmp_path):
    count = 0
    for seed, name, content, readable in broken_files():
        path = tmp_path / name
        path.write_bytes(content)
        count += 1
        if readable:
            expected = np.asarray(square(waves(seed), 32)).astype(int)
            assert abs(read_square(path, 32) - expected).mean() < 8, name
        else:
            with pytest.raises(UserError, match=f'Cannot read the image {path} '):
                read_square(path, 32)
    assert count >= 200


# ---- Grids. --------------------------------------------------------------------------------------


def test_grid_places_every_image():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 64, 64, 3), np.uint8)
    grid = image_grid(images, columns=3)
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    for index in range(5):
        y, x = 2 + index // 3 * 66, 2 + index % 3 * 66
        assert (grid[y : y + 64, x : x + 64] == index).all()
    assert (grid[68:, 134:] == 255).all()  # the sixth cell is white
    assert (grid[:2] == 255).all()
    assert (grid[:, :2] == 255).all()


def test_small_images_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
    grid = image_grid(image, columns=1)
    np.testing.assert_array_equal(grid[2:66:2, 2:66:2], image[0])
    np.testing.assert_array_equal(grid[3:67:2, 3:67:2], image[0])


def test_save_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    save_png(tmp_path / 'new' / 'a.png', image)
    with Image.open(tmp_path / 'new' / 'a.png') as read:
        np.testing.assert_array_equal(np.asarray(read), image)
    assert len(list((tmp_path / 'new').iterdir())) == 1
