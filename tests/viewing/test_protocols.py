"""Titles of scores, and protocols in words: what several scores share is said once."""

from sagan_jax.viewing import protocols


def test_only_names_that_occur_several_times_have_numbers():
    assert protocols.numbered(['fid', 'is', 'fid']) == ['fid (1)', 'is', 'fid (2)']


def test_what_protocols_share_is_said_once():
    fid = {'name': 'fid50', 'num_fake': 50, 'features': 'inception', 'split': 'train'}
    kid = {'name': 'kid50', 'num_fake': 50, 'features': 'other', 'split': 'train', 'subsets': 9}
    share = {'name': 'share50', 'num_fake': 50}
    assert protocols.in_words(['fid', 'kid', 'share'], [fid, kid, share]) == [
        ('in common', 'num fake 50, split train'),
        ('fid', 'features inception'),
        ('kid', 'features other, subsets 9'),
        ('share', '–'),
    ]


def test_one_protocol_alone_shares_nothing():
    words = [('fid', 'features sha256 012345678901')]
    assert protocols.in_words(['fid'], [{'features_sha256': '0123456789' * 6}]) == words
    assert protocols.in_words([], []) == []
