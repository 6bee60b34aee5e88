import ast
import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from sagan_jax.errors import UserError
from sagan_jax.images import (
    SUFFIXES,
    UnreadableImage,
    image_grid,
    read,
    read_square,
    save_png,
    square,
)

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


# ---- Values, against files that are written here. ------------------------------------------------


def png(pixels, bits, colour, *chunks):
    """A PNG file of pixels [H, W, channels] with `bits` bits each, of PNG's colour type."""

    def row(values):
        if bits == 16:
            return values.astype('>u2').tobytes()
        binary = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)
        return np.packbits(binary[:, 8 - bits :].ravel()).tobytes()

    def chunk(kind, content):
        checksum = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + checksum

    height, width, _ = pixels.shape
    header = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
    rows = b''.join(b'\0' + row(values) for values in pixels.reshape(height, -1))
    written = [(b'IHDR', header), *chunks, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in written)


def tiff(content, shape, bits, kind=1, white_is_zero=False, order='<'):
    """An uncompressed grey TIFF file. `kind`: 1 unsigned, 2 signed, 3 floating point."""
    height, width = shape
    photometric = 0 if white_is_zero else 1
    short, long = 3, 4
    tags = [
        *((256, short, width), (257, short, height), (258, short, bits), (259, short, 1)),
        *((262, short, photometric), (273, long, 8 + 2 + 12 * 10 + 4), (277, short, 1)),
        *((278, short, height), (279, long, len(content)), (339, short, kind)),
    ]
    file = (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HIH', 42, 8, len(tags))
    for tag, size, value in tags:
        file += struct.pack(f'{order}HHI', tag, size, 1)
        file += struct.pack(
            f'{order}HH' if size == short else f'{order}I', value, *[0][: size == short]
        )
    return file + bytes(4) + content


def read_bytes(tmp_path, content):
    path = tmp_path / 'image.png'  # the suffix does not matter
    path.write_bytes(content)
    return read(path).astype(float)


def on_white(colour, alpha):
    """Values from 0 to 255 of a colour and an alpha from 0 to 1."""
    return 255 * (colour * alpha + 1 - alpha)


@pytest.mark.parametrize('transparent', [False, True])
@pytest.mark.parametrize('bits', [1, 2, 4, 8, 16])
def test_grey_png(tmp_path, bits, transparent):
    grey = np.random.default_rng(bits).integers(0, 2**bits, (9, 13, 1))
    chunks = [(b'tRNS', struct.pack('>H', grey[4, 5, 0]))] if transparent else []
    expected = np.floor(grey / (2**bits - 1) * 255 + 0.5)
    if transparent:
        expected[grey == grey[4, 5]] = 255
    result = read_bytes(tmp_path, png(grey, bits, 0, *chunks))
    np.testing.assert_array_equal(result, expected.repeat(3, -1))


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize(('colour', 'channels'), [(2, 3), (6, 4), (4, 2)])
def test_colour_and_alpha_of_png(tmp_path, bits, colour, channels):
    pixels = np.random.default_rng(bits).integers(0, 2**bits, (9, 13, channels))
    share = (pixels >> bits - 8) / 255  # of 16 bits the upper 8
    alpha = share[..., -1:] if channels in (2, 4) else 1
    expected = on_white(share[..., : 1 if channels == 2 else 3], alpha)
    result = read_bytes(tmp_path, png(pixels, bits, colour))
    np.testing.assert_allclose(result, np.broadcast_to(expected, (9, 13, 3)), atol=0.51)


def test_a_transparent_colour_of_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2, (9, 13, 3)) * 200
    key = (b'tRNS', struct.pack('>HHH', 0, 200, 0))
    expected = np.where((pixels == (0, 200, 0)).all(-1, keepdims=True), 255, pixels)
    np.testing.assert_array_equal(read_bytes(tmp_path, png(pixels, 8, 2, key)), expected)
    with pytest.raises(UserError, match='transparency of one 16-bit colour is not supported'):
        read_bytes(tmp_path, png(pixels * 257, 16, 2, key))


@pytest.mark.parametrize('alpha', ['none', 'one', 'all'])
@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_palette_png(tmp_path, bits, alpha):
    rng = np.random.default_rng(bits)
    indices = rng.integers(0, 2**bits, (9, 13, 1))
    palette = rng.integers(0, 256, (2**bits, 3)).astype(np.uint8)
    alphas = np.full(2**bits, 255, np.uint8)
    if alpha == 'one':
        alphas[0] = 0
    elif alpha == 'all':
        alphas = rng.integers(0, 256, 2**bits).astype(np.uint8)
    chunks = [(b'PLTE', palette.tobytes()), (b'tRNS', alphas.tobytes())]
    result = read_bytes(tmp_path, png(indices, bits, 3, *chunks[: 1 if alpha == 'none' else 2]))
    expected = on_white(palette / 255, alphas[:, None] / 255)[indices[..., 0]]
    np.testing.assert_allclose(result, expected, atol=0.51)


@pytest.mark.parametrize('order', ['<', '>'])
@pytest.mark.parametrize('white_is_zero', [False, True])
def test_float_and_16_bit_tiff(tmp_path, order, white_is_zero):
    share = np.random.default_rng(0).random((9, 13))
    share[0, :2] = 0, 1
    written = {
        (16, 1): (share * 65535).round().astype(f'{order}u2'),
        (32, 3): share.astype(f'{order}f4'),
    }
    for (bits, kind), values in written.items():
        content = tiff(values.tobytes(), share.shape, bits, kind, white_is_zero, order)
        if (bits, order, white_is_zero) == (16, '>', True):  # Pillow does not know it
            with pytest.raises(UserError, match='Cannot read the image'):
                read_bytes(tmp_path, content)
            continue
        expected = 255 * (1 - share if white_is_zero else share)
        result = read_bytes(tmp_path, content)
        np.testing.assert_allclose(result, expected[..., None].repeat(3, -1), atol=0.51)


def test_twelve_bit_tiff(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (4, 6))
    binary = np.unpackbits(values.astype('>u2').view(np.uint8).reshape(-1, 2), axis=1)
    content = np.packbits(binary[:, 4:].ravel()).tobytes()
    result = read_bytes(tmp_path, tiff(content, values.shape, 12))
    np.testing.assert_allclose(result[..., 0], values / 4095 * 255, atol=0.51)


@pytest.mark.parametrize(
    ('values', 'kind'),
    [
        (np.linspace(0, 255, 20, dtype='<f4'), 3),
        (np.linspace(-0.1, 1, 20, dtype='<f4'), 3),
        (np.full(20, np.nan, '<f4'), 3),
        (np.array([*[0.5] * 19, np.inf], '<f4'), 3),
        (np.linspace(0, 1, 20, dtype='<f8'), 3),
        (np.linspace(0, 1, 20, dtype='<f2'), 3),
        (np.arange(20, dtype='<i2'), 2),
        (np.arange(20, dtype='<i4'), 2),
        (np.arange(20, dtype='<u4'), 1),
    ],
)
def test_values_without_a_known_white_are_refused(tmp_path, values, kind):
    content = tiff(values.tobytes(), (4, 5), 8 * values.itemsize, kind)
    with pytest.raises(
        UserError, match=r'Cannot read the image .*: replace it or remove it'
    ) as error:
        read_bytes(tmp_path, content)
    if values.dtype == np.float32:
        assert 'but only 0 to 1 is supported' in str(error.value)


def test_pgm_of_any_maximum(tmp_path):
    for maximum in (1, 100, 255, 256, 1000, 65535):
        grey = np.linspace(0, maximum, 12).round().astype(int).reshape(3, 4)
        values = grey.astype('>u2' if maximum > 255 else 'u1').tobytes()
        result = read_bytes(tmp_path, b'P5\n4 3\n%d\n' % maximum + values)
        np.testing.assert_allclose(result[..., 0], grey / maximum * 255, atol=0.51)


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


WRITERS = [
    *[('PNG', {}), ('JPEG', {'quality': 90}), ('JPEG', {'quality': 90, 'progressive': True})],
    *[('WEBP', {}), ('WEBP', {'lossless': True}), ('GIF', {}), ('TIFF', {}), ('BMP', {})],
    *[('PPM', {}), ('TGA', {})],
]


@pytest.mark.filterwarnings('ignore:Truncated File Read')
@pytest.mark.parametrize(('file_format', 'options'), WRITERS)
def test_a_file_that_ends_early_is_never_read(tmp_path, file_format, options):
    path, content = tmp_path / 'x.png', encoded(waves(3), file_format, **options)
    for share in np.linspace(0, 0.95, 12):
        path.write_bytes(cut(content, share))
        with pytest.raises(UserError, match='Cannot read the image'):
            read(path)


@pytest.mark.parametrize(('file_format', 'options'), WRITERS)
def test_damage_in_the_middle_gives_an_error_or_an_image_of_the_same_size(
    tmp_path, file_format, options
):
    """More is not promised: most formats have no checksum."""
    path, content = tmp_path / 'x.png', encoded(waves(3), file_format, **options)
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        start = rng.integers(len(content) // 2, len(content) - 8)
        damaged[start : start + 8] = rng.bytes(8)
        path.write_bytes(damaged)
        with contextlib.suppress(UnreadableImage):
            result = read(path)
            assert (result.shape, result.dtype) == ((*waves(3).size[::-1], 3), np.uint8)


def test_the_rows_above_the_damage_of_a_jpeg_are_right(tmp_path):
    """Such a file is accepted: the decoder reports no error."""
    path, content = tmp_path / 'x.jpg', bytearray(encoded(waves(3), 'JPEG', quality=90))
    path.write_bytes(content)
    whole = read(path)
    content[len(content) * 3 // 4] ^= 8
    path.write_bytes(content)
    damaged = read(path)
    np.testing.assert_array_equal(damaged[: len(whole) // 2], whole[: len(whole) // 2])
    assert (damaged != whole).any()


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
