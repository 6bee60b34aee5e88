"""Titles of scores, and protocols in words: shared keys appear once."""

from sagan_jax.viewing import protocols


def test_only_repeated_names_are_numbered():
    assert protocols.numbered(['fid', 'is', 'fid']) == ['fid (1)', 'is', 'fid (2)']


def test_shared_keys_appear_once():
    fid = {'name': 'fid50', 'num_fake': 50, 'features': 'inception', 'split': 'train'}
    kid = {'name': 'kid50', 'num_fake': 50, 'features': 'other', 'split': 'train', 'subsets': 9}
    share = {'name': 'share50', 'num_fake': 50}
    assert protocols.in_words(['fid', 'kid', 'share'], [fid, kid, share]) == [
        ('in common', 'num fake 50, split train'),
        ('fid', 'features inception'),
        ('kid', 'features other, subsets 9'),
        ('share', '–'),
    ]


def test_a_single_protocol_shares_nothing():
    words = [('fid', 'features sha256 012345678901')]
    assert protocols.in_words(['fid'], [{'features_sha256': '0123456789' * 6}]) == words
    assert protocols.in_words([], []) == []
