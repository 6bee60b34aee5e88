"""Lines for people who watch a run."""

from collections.abc import Mapping


def progress(step: int, num_steps: int, values: Mapping[str, float], images_per_step: int) -> str:
    """A step's losses, logits and gammas and, where 'images_per_second' is known, the time left."""
    gammas = ' '.join(
        f'{name[0].upper()}{name.partition("gamma")[2]} {value:+.3f}'
        for name, value in values.items()
        if 'gamma' in name
    )
    line = (
        f'step {step:>{len(str(num_steps))}}/{num_steps}'
        f'  loss D {values["discriminator_loss"]:.3f} G {values["generator_loss"]:+.3f}'
        f'  logit real {values["real_logit"]:+.2f} fake {values["fake_logit"]:+.2f}'
    )
    if gammas:
        line += f'  gamma {gammas}'
    if 'images_per_second' in values:
        rate = values['images_per_second']
        left = (num_steps - step) * images_per_step / rate
        line += f'  {rate:,.0f} images/s  {duration(left)} left'
    return line


def duration(seconds: float) -> str:
    """Seconds for people: '6 min 26 s', '3 h 05 min', '2 d 4 h'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {seconds:02d} s'
