"""Every key that a configuration has, with its default and what it means.

The files in configs/ start from `get_config()` and set what is decisive for their data set.
Any key can be changed on the command line, for example --config.optimizer.generator_lr=2e-4
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The official code's settings, for networks of 32×32 on the embedded data set."""
    config = ml_collections.ConfigDict()

    config.seed = 0  # decides, with the step, everything that is random in a run
    config.num_train_steps = 1_000_000  # generator updates
    config.batch_size = 256  # over all devices together
    config.dtype = 'float32'  # of the activations: 'float32' or 'bfloat16'
    config.steps_per_call = 1  # steps that run on the devices without the host in between
    # Parts in which each device computes its batch, one after the other, where all of it does not
    # fit. Batch moments are then those of a part.
    config.gradient_accumulation = 1
    config.discriminator_steps = 1  # discriminator updates for each generator update
    config.loss = 'hinge'  # 'hinge' or 'non_saturating'
    # Weight of the discriminator's loss on real images with a wrong label (Reed et al., 2016),
    # which teaches it the classes before the fakes show any; 0: no such loss.
    config.mismatch_weight = 0.0
    # Weight of the generator's loss on pairs of images of one class that are alike although their
    # z are not (mode seeking: Mao et al., 2019); 0: no such loss.
    config.mode_seeking_weight = 0.0

    config.dataset = dataset = ml_collections.ConfigDict()
    dataset.name = 'shapes'  # 'shapes', 'image_folder', or the name of a TFDS data set
    dataset.data_dir = config_dict.placeholder(str)  # prepared data; default: TFDS's own folder
    dataset.source_dir = config_dict.placeholder(str)  # image_folder: the folder of class folders
    dataset.image_size = 32  # 32, 64, 128 or 256
    dataset.num_classes = 10
    dataset.flip = False  # mirror half of the real images, at random
    dataset.on_device = False  # keep all pictures in the memory of every device

    config.model = model = ml_collections.ConfigDict()
    model.architecture = 'sagan'  # a table in sagan_jax/models/architectures.py
    model.generator_width = 64  # the tables' unit, ch
    model.discriminator_width = 64
    model.z_dim = 128
    model.generator_attention = (16,)  # resolutions with self-attention, () for none
    model.discriminator_attention = (16,)
    # What stands there: 'self_attention', or 'residual', a residual block of as many parameters.
    model.attention_block = 'self_attention'
    model.attention_value_divisor = 2  # values are C over this wide; in the paper's text 8
    model.attention_pooling = True  # max-pool keys and values 2×2; not so in the paper's text
    # Queries at a time, their weights computed again in the backward pass; 0: all at once.
    model.attention_query_block = 0
    # 'projection'; 'acgan', an auxiliary classifier; or 'none' for an unconditional GAN.
    model.conditioning = 'projection'
    model.acgan_weight = 1.0  # of the classifier's loss
    model.initializer = 'xavier_uniform'  # or 'orthogonal', or 'normal' with deviation 0.02

    config.spectral_norm = spectral_norm = ml_collections.ConfigDict()
    spectral_norm.generator = True
    spectral_norm.discriminator = True
    spectral_norm.epsilon = 1e-12

    config.batch_norm = batch_norm = ml_collections.ConfigDict()
    batch_norm.cross_replica = True  # moments over all devices, or each device on its own
    batch_norm.decay = 0.999  # of the running averages
    batch_norm.last_decay = 0.9999  # the same in the generator's last, plain batch norm
    batch_norm.epsilon = 1e-5
    # A frozen generator takes its statistics from so many fresh batches; 0: the running averages.
    batch_norm.standing_batches = 0

    config.optimizer = optimizer = ml_collections.ConfigDict()  # Adam
    optimizer.generator_lr = 1e-4
    optimizer.discriminator_lr = 4e-4
    optimizer.b1 = 0.0
    optimizer.b2 = 0.999
    optimizer.epsilon = 1e-8
    # Share of num_train_steps after which both rates fall linearly to 0; 1: constant rates.
    optimizer.decay_from = 1.0

    config.ema = ema = ml_collections.ConfigDict()
    ema.decay = 0.0  # of the averaged generator that draws the samples; 0: no averaging
    ema.start_step = 0  # until then the average is the generator itself

    config.log_every = 100  # all of these in steps
    config.sample_every = 1000
    config.checkpoint_every = 1000
    # How often a run that diverges goes back to its last checkpoint, with other noise.
    config.divergence_restarts = 0
    config.keep_checkpoints = 3  # the newest; the last step is among them
    config.evaluate_every = 0  # scores while training; 0: none

    config.watch = watch = ml_collections.ConfigDict()  # warnings of a collapse
    watch.max_logit_gap = 50.0  # between the mean logits on real and on fake images
    watch.max_sigma = 1000.0  # of both networks
    watch.min_diversity = 1.0  # of samples of one class, in levels of 0 to 255
    watch.stop = False  # whether a warning ends the run

    config.distributed = distributed = ml_collections.ConfigDict()
    # Of a run of several processes: 'auto' (SLURM, TPU pods, MPI), or host:port of the first one,
    # how many there are and which this is. '': this process is all of it.
    distributed.coordinator = ''
    distributed.num_processes = 1
    distributed.process_id = 0

    config.evaluation = evaluation = ml_collections.ConfigDict()
    # 'inception', the network of the literature, or 'in_domain', a small classifier of our own
    # that is trained on the data set.
    evaluation.features = 'inception'
    evaluation.inception_weights = config_dict.placeholder(str)  # a file; default: a download
    evaluation.split = 'train'  # of the real pictures: 'train' or 'test'
    evaluation.num_samples = 50_000  # generated images
    evaluation.training_samples = 10_000  # the same for scores while training
    evaluation.pair_samples = 10_000  # on either side for KID, precision, recall and their like
    evaluation.intra_fid_samples = 0  # images of each class for intra FID; 0: no intra FID
    evaluation.splits = 10  # of the Inception Score; the authors' code has 1
    evaluation.round_to_uint8 = True  # the authors' code scores the generator's floats
    evaluation.best = 'fid'  # 'fid' or 'is': of which the best checkpoint is kept while training
    evaluation.batch_size = 64  # images at a time; changes no score

    return config
