"""All keys of a configuration, with their defaults and meanings.

The files in configs/ start from `get_config()` and set the keys that matter for their data set.
Any key can be set on the command line, for example --config.optimizer.generator_lr=2e-4
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The settings of the official code, with 32×32 networks on the embedded data set."""
    config = ml_collections.ConfigDict()

    config.seed = 0  # all randomness of a run is a function of the seed and the step
    config.num_train_steps = 1_000_000  # generator updates
    config.batch_size = 256  # of all devices together
    config.dtype = 'float32'  # of the activations: 'float32' or 'bfloat16'
    # Of the networks' products in float32, as JAX names it: 'default', for which a TPU rounds to
    # bfloat16 and an NVIDIA GPU to TF32; 'high'; or 'highest', float32. A CPU always has float32.
    config.matmul_precision = 'default'
    # Only operations that an NVIDIA GPU always computes with the same result, so that a run resumes
    # bit for bit; slower. It changes nothing elsewhere.
    config.deterministic = False
    config.steps_per_call = 1  # steps that the devices run without waiting for the host
    # Each device divides its batch into this many parts, computed one after the other, to save
    # memory. Batch moments are then those of a part.
    config.gradient_accumulation = 1
    config.discriminator_steps = 1  # discriminator updates for each generator update
    config.loss = 'hinge'  # 'hinge' or 'non_saturating'
    # Weight of the discriminator's loss on real images with a wrong label (Reed et al., 2016), from
    # which it learns the classes before generated images show any; 0: no such loss.
    config.mismatch_weight = 0.0
    # Weight of the generator's loss on pairs of images of the same class that are similar although
    # their z differ (mode seeking: Mao et al., 2019); 0: no such loss.
    config.mode_seeking_weight = 0.0
    # What the discriminator sees of real and of generated images, against learning few images by
    # heart (DiffAugment: Zhao et al., 2020): 'color', 'translation' and 'cutout', with commas
    # between, as in 'color,translation,cutout'; 'auto': these three if there are few images, see
    # resolving.py; '': the images as they are.
    config.diff_augment = ''
    # Weight of a penalty on the distance of the discriminator's logits of real images from a moving
    # average of those of generated ones, and vice versa (LeCam: Tseng et al., 2021, λ); 0: none.
    config.lecam_weight = 0.0
    # Weight of a penalty on the discriminator's gradient at real images (R1: Mescheder et al.,
    # 2018, γ); 0: none.
    config.r1_weight = 0.0
    config.r1_every = 16  # steps between updates by R1, each this much stronger

    config.dataset = dataset = ml_collections.ConfigDict()
    # 'shapes', 'image_folder', 'cifar10', 'imagenet2012', 'hf:OWNER/NAME' or 'hf:OWNER/NAME/CONFIG'
    # of the Hugging Face hub, or the name of a TFDS data set.
    dataset.name = 'shapes'
    dataset.data_dir = config_dict.placeholder(str)  # prepared data; default: the folder of TFDS
    # image_folder: the folder of images, or its zip or tar. cifar10: the archive, instead of a
    # download. imagenet2012: the folder of the two tars.
    dataset.source_dir = config_dict.placeholder(str)
    # Of the hub: the commit; default: the newest one when the data are prepared.
    dataset.revision = config_dict.placeholder(str)
    # Of the hub: the columns of images and of classes; default: found by their types and names. An
    # empty label_key leaves out the classes.
    dataset.image_key = config_dict.placeholder(str)
    dataset.label_key = config_dict.placeholder(str)
    dataset.image_size = 32  # 3·2^k or 4·2^k, from 24 to 1024
    dataset.channels = 3  # of the networks' images; 1 turns all images into grey ones
    # None: as many as the data have. With a single one, model.conditioning is then 'none'.
    dataset.num_classes = config_dict.placeholder(int)
    dataset.flip = False  # mirror real images with probability 1/2
    dataset.on_device = False  # keep all images in the memory of every device

    config.model = model = ml_collections.ConfigDict()
    model.architecture = 'sagan'  # a table in sagan_jax/models/architectures.py
    model.generator_width = 64  # the tables' unit, ch
    model.discriminator_width = 64
    model.z_dim = 128
    # Resolutions with self-attention, () for none. None: at 16, or at 12 for images of 3·2^k.
    model.generator_attention = config_dict.placeholder(tuple)
    model.discriminator_attention = config_dict.placeholder(tuple)
    # The block at these resolutions: 'self_attention', or 'residual', with as many parameters.
    model.attention_block = 'self_attention'
    model.attention_value_divisor = 2  # values have C divided by this; 8 in the paper's text
    model.attention_pooling = True  # max-pool keys and values 2×2; False in the paper's text
    # Queries computed at a time, and again in the backward pass, to save memory; 0: all.
    model.attention_query_block = 0
    # 'projection'; 'acgan', an auxiliary classifier; or 'none' for an unconditional GAN.
    model.conditioning = 'projection'
    model.acgan_weight = 1.0  # of the classifier's loss
    model.initializer = 'xavier_uniform'  # or 'orthogonal', or 'normal' with deviation 0.02
    model.dense_bias = 'zeros'  # initial biases of linear layers; or 'uniform', as PyTorch has them
    # What the skips of the discriminator's blocks see: 'input', or 'relu' for ReLU of the input, as
    # in PyTorch code whose ReLU overwrites its input.
    model.discriminator_skip = 'input'

    config.spectral_norm = spectral_norm = ml_collections.ConfigDict()
    spectral_norm.generator = True
    spectral_norm.discriminator = True
    spectral_norm.epsilon = 1e-12
    spectral_norm.class_tables = False  # also the generator's tables of conditional batch norm

    config.batch_norm = batch_norm = ml_collections.ConfigDict()
    batch_norm.cross_replica = True  # moments over all devices instead of each device's own
    batch_norm.decay = 0.999  # of the running averages
    batch_norm.last_decay = 0.9999  # the same in the generator's last, plain batch norm
    batch_norm.epsilon = 1e-5
    # Tables of conditional batch norm: 'constant', gains from 1 and biases from 0; or 'drawn', with
    # gains of 1 + table and both tables drawn as model.initializer says.
    batch_norm.class_tables = 'constant'
    batch_norm.unbiased_average = False  # average the variance over n - 1, as PyTorch
    # Batches from which a frozen generator estimates its moments; 0: use the running averages.
    batch_norm.standing_batches = 0

    config.optimizer = optimizer = ml_collections.ConfigDict()  # Adam
    optimizer.generator_lr = 1e-4
    optimizer.discriminator_lr = 4e-4
    optimizer.b1 = 0.0
    optimizer.b2 = 0.999
    optimizer.epsilon = 1e-8
    # Fraction of num_train_steps after which both rates fall linearly to 0; 1: constant rates.
    optimizer.decay_from = 1.0

    # Blocks of the discriminator, counted from the image, that are not updated (FreezeD, Mo et al.,
    # 2020), with init.run.
    optimizer.frozen_discriminator_blocks = 0

    config.init = init = ml_collections.ConfigDict()
    # The folder of a run whose networks this one begins with, on other images or classes; the
    # command line has --init for it. None: new networks.
    init.run = config_dict.placeholder(str)

    config.ema = ema = ml_collections.ConfigDict()
    ema.decay = 0.0  # of the averaged generator, which generates all samples; 0: no averaging
    ema.start_step = 0  # before this step the average is the generator itself

    config.log_every = 100  # these are in steps
    config.sample_every = 1000
    config.checkpoint_every = 1000
    # How many times a diverged run restarts from its last checkpoint, with different noise.
    config.divergence_restarts = 0
    config.keep_checkpoints = 3  # the newest ones; the last step is always saved
    config.evaluate_every = 0  # compute scores during training; 0: never

    config.watch = watch = ml_collections.ConfigDict()  # thresholds for warnings of a collapse
    watch.max_logit_gap = 50.0  # between the mean logits on real and on fake images
    watch.max_sigma = 1000.0  # of both networks
    watch.min_diversity = 1.0  # of samples of one class, on the scale from 0 to 255
    watch.stop = False  # stop the run at a warning

    config.logging = logging = ml_collections.ConfigDict()
    # The project at Weights & Biases where curves and samples are logged too; None: in none.
    logging.wandb_project = config_dict.placeholder(str)

    config.distributed = distributed = ml_collections.ConfigDict()
    # For several processes: 'auto' (SLURM, TPU pods, MPI), or host:port of process 0 together with
    # the number of processes and the index of this one. '': a single process.
    distributed.coordinator = ''
    distributed.num_processes = 1
    distributed.process_id = 0

    config.evaluation = evaluation = ml_collections.ConfigDict()
    # 'inception', the network of the literature, or 'in_domain', a small classifier trained on the
    # data set.
    evaluation.features = 'inception'
    evaluation.inception_weights = config_dict.placeholder(str)  # a file; default: a download
    evaluation.split = 'train'  # of the real images: 'train' or 'test'
    evaluation.num_samples = 50_000  # generated images
    evaluation.training_samples = 10_000  # generated images for scores during training
    evaluation.pair_samples = 10_000  # on either side for KID, precision, recall and similar
    evaluation.intra_fid_samples = 0  # images of each class for intra FID; 0: no intra FID
    evaluation.splits = 10  # of the Inception Score; the authors' code has 1
    evaluation.round_to_uint8 = True  # the authors' code scores unrounded images
    evaluation.best = 'fid'  # the score, 'fid' or 'is', by which the best checkpoint is kept
    evaluation.batch_size = 64  # images at a time on each device; changes no score

    return config
