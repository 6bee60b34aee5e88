"""Published files that can be downloaded by name."""

from pathlib import Path
from typing import NamedTuple

from sagan_jax.errors import UserError
from sagan_jax.published.conversion import name_checksum
from sagan_jax.system import download, paths

PREFIX = 'https://download.openmmlab.com/mmgen/sagan/'


class Known(NamedTuple):
    """A file of mmgeneration, with the scores that it reports for it, by its own protocol."""

    file: str
    inception_score: float
    fid: float

    @property
    def url(self) -> str:
        return PREFIX + self.file


_CIFAR10 = 'sagan_cifar10_32_lr2e-4_ndisc5_b64x1_'
_IMAGENET = 'sagan_imagenet1k_128_Glr1e-4_Dlr4e-4_ndisc1_b32x4_woReLUinplace_'

FILES = {
    'imagenet128': Known(
        'sagan_128_woReLUinplace_noaug_bigGAN_imagenet1k_b32x8_Glr1e-4_Dlr-4e-4_ndisc1_'
        '20210818_210232-3f5686af.pth',
        69.5350,
        12.8295,
    ),
    'imagenet128_best_is': Known(
        f'{_IMAGENET}is-iter980000_20210730_163140-cfbebfc6.pth', 31.5938, 36.7712
    ),
    'imagenet128_best_fid': Known(
        f'{_IMAGENET}fid-iter950000_20210730_163431-d7916963.pth', 28.4936, 34.7838
    ),
    'imagenet128_studiogan': Known(
        'sagan_128_imagenet1k_convert-studio-rgb_20210730_153357-eddb0d1d.pth', 27.367, 40.1162
    ),
    'cifar10_best_is': Known(
        f'{_CIFAR10}woReUinplace_is-iter400000_20210730_125743-4008a9ca.pth', 9.3217, 10.5030
    ),
    'cifar10_best_fid': Known(
        f'{_CIFAR10}woReUinplace_fid-iter480000_20210730_125449-d50568a4.pth', 9.3174, 9.4252
    ),
    'cifar10_in_place_best_is': Known(
        f'{_CIFAR10}wReLUinplace_is-iter380000_20210730_124937-c77b4d25.pth', 9.2286, 11.7760
    ),
    'cifar10_in_place_best_fid': Known(
        f'{_CIFAR10}wReLUinplace_fid-iter460000_20210730_125155-cbefb354.pth', 9.2061, 10.7781
    ),
    'cifar10_studiogan': Known(
        'sagan_32_cifar10_convert-studio-rgb_20210730_153321-080da7e2.pth', 9.116, 10.2011
    ),
}


def fetch(name: str) -> Path:
    """Downloads a known file into the cache, once.

    Raises:
      UserError: if the name is unknown, the download fails, or its checksum is not the one that the
        file's name carries.
    """
    if name not in FILES:
        raise UserError(f'There is no known file {name!r}: choose among {", ".join(FILES)}.')
    known = FILES[name]
    path = paths.cache_folder() / known.file

    def accept(sha256: str) -> None:
        if not sha256.startswith(str(name_checksum(known.file))):
            raise UserError(
                f'What {known.url} sent has the SHA-256 {sha256}, and not that of its name: try '
                'again, or download it by other means and give the file.'
            )

    if not path.is_file():
        otherwise = 'download it on another machine and give the file'
        download.download(known.url, path, accept, otherwise)
    return path
