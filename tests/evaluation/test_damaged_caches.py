"""Caches of real images' statistics and of the classifier, damaged in every way."""

import numpy as np
import pytest

from sagan_jax.evaluation import real_statistics
from tests import damage

RECORD = {'data': 'x', 'count': 36}
ARRAYS = {'moments/count': np.array(36), 'features': np.arange(60, dtype=np.float32)}


@pytest.mark.parametrize('name', damage.WHOLE)
@pytest.mark.parametrize('kind', ['statistics', 'classifier'])
def test_a_damaged_cache_is_named_and_computed_again(tmp_path, capsys, kind, name):
    for _ in range(2):  # computed, then read
        real_statistics._cached(tmp_path, kind, RECORD, lambda: ARRAYS)
    (path,) = (tmp_path / 'sagan_jax').glob('*.npz')
    damage.WHOLE[name](path)
    found = real_statistics._cached(tmp_path, kind, RECORD, lambda: ARRAYS)
    printed = capsys.readouterr().out
    if name != 'a folder in its place':
        again = real_statistics._cached(tmp_path, kind, RECORD, None)
        np.testing.assert_array_equal(again['features'], ARRAYS['features'])
    np.testing.assert_array_equal(found['features'], ARRAYS['features'])
    # What follows the index at the end of a ZIP file is no part of it.
    assert f'{path} cannot be read' in printed or name in ('removed', 'foreign line appended')


@pytest.mark.parametrize('array', [np.array('[]'), np.array([1, 2]), np.array(None, object)])
def test_a_cache_with_another_kind_of_record_is_computed_again(tmp_path, capsys, array):
    real_statistics._cached(tmp_path, 'statistics', RECORD, lambda: ARRAYS)
    (path,) = (tmp_path / 'sagan_jax').glob('*.npz')
    np.savez(path, **ARRAYS | {'record': array})
    real_statistics._cached(tmp_path, 'statistics', RECORD, lambda: ARRAYS)
    assert 'cannot be read and is computed again' in capsys.readouterr().out
