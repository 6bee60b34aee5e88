"""The scores that the paper reports for the variants: ImageNet at 128×128, best of a run."""

# FID and Inception Score of Table 1; all three scores of Table 2; FID of Figures 3 and 4 at the
# steps that the paper names.
SCORES = {
    'no_attention': {'fid': '22.96', 'is': '42.87'},
    'feat8': {'fid': '22.98', 'is': '43.15'},
    'feat16': {'fid': '22.14', 'is': '45.94'},
    'feat32': {'fid': '18.28', 'is': '51.43'},
    'feat64': {'fid': '18.65', 'is': '52.52', 'intra_fid': '83.7'},
    'residual8': {'fid': '42.13', 'is': '23.17'},
    'residual16': {'fid': '22.40', 'is': '44.49'},
    'residual32': {'fid': '27.33', 'is': '38.50'},
    'residual64': {'fid': '28.82', 'is': '38.96'},
    'acgan': {'is': '28.5', 'intra_fid': '260.0'},
    'sngan_projection': {'fid': '27.62', 'is': '36.8', 'intra_fid': '92.4'},
    'sn_d': {'fid': '181.84 @10k'},
    'sn_gd': {'fid': '93.52 @10k, 33.39 @160k, 72.41 @260k'},
    'sn_gd_ttur': {'fid': '99.04 @10k, 40.96 @160k, 34.62 @260k, 22.96 @1M'},
}

NOTE = (
    'The columns headed “paper” hold the paper’s scores: ImageNet at 128×128, 1,000,000 steps with '
    'batches of 256, the best score of a run (@: the score at that step), features of the 2015 '
    'Inception network. Scores of other data, sizes or features are not comparable with them; only '
    'the order of the rows is.'
)
SAGAN_NOTE = 'The SAGAN of the paper’s Table 2 is feat64: FID 18.65, IS 52.52, intra FID 83.7.'
