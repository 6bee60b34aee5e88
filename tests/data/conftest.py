import ml_collections
import pytest


@pytest.fixture
def dataset(tmp_path):
    """The configuration's `dataset`, with a data folder for this test only."""
    return ml_collections.ConfigDict(
        {
            'name': 'shapes',
            'data_dir': str(tmp_path / 'prepared'),
            'source_dir': None,
            'revision': None,
            'image_key': None,
            'label_key': None,
            'image_size': 32,
            'channels': 3,
            'num_classes': 10,
            'flip': False,
        },
        type_safe=False,
    )
